"""The classes of a table, a model or a data set: their codes, in the order of every label and probability column."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from ham_ray.errors import UserError


class Diagnosis(NamedTuple):
    """One class.

    Args:
        dx: its code, as tables and columns have it: lower case, digits and `_`.
        name: in words.
        malignant: whether it is malignant or the precursor of a malignant lesion; None: not known.
        other_names: what archives and people call it besides, as `words` has them, separated by `|`.
    """

    dx: str
    name: str
    malignant: bool | None = None
    other_names: str = ""


@dataclass(frozen=True)
class Classes:
    """Classes in their order.

    Args:
        diagnoses: one a class; a label is an index of it.
        focus: the dx of the class that has thresholds and curves of its own; None: no class has.
    """

    diagnoses: tuple[Diagnosis, ...]
    focus: str | None = None

    def __len__(self) -> int:
        """Count the classes."""
        return len(self.diagnoses)

    @cached_property
    def codes(self) -> tuple[str, ...]:
        """The dx of each class."""
        return tuple(diagnosis.dx for diagnosis in self.diagnoses)

    @cached_property
    def labels(self) -> dict[str, int]:
        """The label of each dx."""
        return {dx: label for label, dx in enumerate(self.codes)}

    @cached_property
    def probabilities(self) -> list[str]:
        """The columns of PREDICTIONS that hold probabilities, in the order of labels."""
        return [f"p_{dx}" for dx in self.codes]

    @cached_property
    def raw(self) -> list[str]:
        """The columns of probabilities before calibration, where there are any."""
        return [f"raw_{dx}" for dx in self.codes]

    @cached_property
    def calibrated(self) -> list[str]:
        """The columns of probabilities after calibration, beside those before it."""
        return [f"calibrated_{dx}" for dx in self.codes]

    @cached_property
    def malignant(self) -> list[int]:
        """The labels of malignant classes; empty unless it is known of all classes, and both kinds are there."""
        known = [diagnosis.malignant for diagnosis in self.diagnoses]
        return [label for label, malignant in enumerate(known) if malignant] if {*known} == {True, False} else []

    @property
    def focus_label(self) -> int | None:
        """The label of the class in focus."""
        return None if self.focus is None else self.labels[self.focus]

    @cached_property
    def focus_name(self) -> str | None:
        """The name of the class in focus as one word, the first part of its metrics' names; such as `melanoma`."""
        return None if self.focus is None else re.sub(r"\W+", "_", self.name(self.focus))

    @cached_property
    def focus_metrics(self) -> dict[str, str]:
        """The names of sensitivity and AUC of the class in focus, such as `melanoma_auc`; empty without one."""
        return {name: f"{self.focus_name}_{name}" for name in ("sensitivity", "auc") if self.focus}

    def name(self, dx: str) -> str:
        """Name a class in words."""
        return self.diagnoses[self.labels[dx]].name

    def titled(self, dx: str) -> str:
        """Name a class by code and in words, such as "bcc (basal cell carcinoma)"."""
        return dx if self.name(dx) == dx else f"{dx} ({self.name(dx)})"

    def code_of(self, text: str) -> str | None:
        """Look up the code of the class that has this code or name, however it is written; None: no class has."""
        return self._code_of.get(words(text))

    def nearest(self, text: str) -> str | None:
        """Return the known name most like one that is of no class, with its code; None where no name is like it."""
        near = difflib.get_close_matches(words(text), self._code_of, n=1, cutoff=0.6)
        if not near:
            return None
        return near[0] if near[0] in self.codes else f"{near[0]} ({self._code_of[near[0]]})"

    def unknown(self, texts: Iterable[str], most: int = 8) -> str:
        """List names that are of no class, with their counts and what is nearest; "" where there are none."""
        listed = []
        for text, count in Counter(texts).most_common():
            near = self.nearest(text)
            listed.append(f"{text!r} ({count:,}{f', nearest is {near}' if near else ''})")
        return ", ".join(listed[:most]) + (f" and {len(listed) - most} more" if len(listed) > most else "")

    @cached_property
    def _code_of(self) -> dict[str, str]:
        names = {
            words(name): one.dx for one in self.diagnoses for name in (one.name, *one.other_names.split("|")) if name
        }
        return names | {words(dx): dx for dx in self.codes}


def common(owned: Iterable[tuple[str, Classes]], subject: str, remedy: str) -> Classes:
    """Return the classes that all owners have in common; `owned` are pairs of an owner's name and its classes.

    Raises:
        UserError: two owners have different classes; `subject` begins the message and `remedy` ends it.
    """
    (first, classes), *others = owned
    for name, own in others:
        if own != classes:
            each = f"{first}: {', '.join(classes.codes)}; {name}: {', '.join(own.codes)}"
            raise UserError(f"{subject} of different classes ({each}); {remedy}")
    return classes


def words(text: str) -> str:
    """Reduce a name to lower-case words with one blank between: `Bowen's_disease` and `bowens disease` are one."""
    return " ".join(re.sub(r"[\W_]+", " ", re.sub(r"['’`]", "", text.casefold())).split())


def code(text: str) -> str:
    """Make the code of a class from the name that a user calls it by, such as `seborrheic_keratosis`."""
    return words(text).replace(" ", "_")

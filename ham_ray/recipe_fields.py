"""The table of a recipe's fields: what each is called, takes and means."""

from __future__ import annotations

from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo
from rich import box
from rich.table import Table
from rich.text import Text

from ham_ray.console import for_tables
from ham_ray.recipe import BASELINES, SHORTEST, Recipe, field_info

_BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


def show() -> None:
    """Print every field of a recipe by section: its names, the values it takes, its default and what it is."""
    console = for_tables()
    console.print(
        "What --set field=value and search spaces change, by its shortest or its dotted name. Each family "
        f"({', '.join(BASELINES)}) has values of its own for some of the fields."
    )
    for section in dict.fromkeys(dotted.rpartition(".")[0] for dotted in SHORTEST):
        console.print(_table(section))


def _table(section: str) -> Table:
    """Make the table of a section's fields; of the section without name those that are in none."""
    purpose = Recipe.model_fields[section].annotation.__doc__ if section else Recipe.__doc__
    title = Text(f"{section}: {purpose}" if section else str(purpose).splitlines()[0])
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, expand=True, pad_edge=False)
    for heading, width in (("field", max(map(len, SHORTEST))), ("values", 17), ("default", 13), ("", None)):
        table.add_column(heading, width=width)
    for dotted, shortest in SHORTEST.items():
        if dotted.rpartition(".")[0] == section:
            info, names = field_info(shortest), dict.fromkeys([shortest, dotted])
            table.add_row(*map(Text, ("\n".join(names), _values(info), _default(info), info.description or "")))
    return table


def _values(info: FieldInfo) -> str:
    """Write the values that a field takes: its choices, or its type and bounds."""
    bounds = [
        f"{sign} {getattr(bound, name):,}"
        for bound in info.metadata
        for name, sign in _BOUNDS.items()
        if getattr(bound, name, None) is not None
    ]
    return "\n".join([_kind(info.annotation), *([", ".join(bounds)] if bounds else [])])


def _kind(annotation: Any) -> str:
    """Write a type in words; of a union or a list of choices each."""
    if get_origin(annotation) is Literal:
        return ", ".join(map(str, get_args(annotation)))
    if parts := get_args(annotation):
        return " or ".join(map(_kind, parts))
    return "none" if annotation is type(None) else annotation.__name__


def _default(info: FieldInfo) -> str:
    return "the family's" if info.is_required() else str(info.default)

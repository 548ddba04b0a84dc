"""`--weights`: what each pretrained architecture starts from, and its checks before TensorFlow starts."""

from __future__ import annotations

import re
from collections.abc import Iterable

from ham_ray import storage
from ham_ray.errors import UserError, listed, shown, unknown_name
from ham_ray.models import registry
from ham_ray.models.architecture import Architecture
from ham_ray.recipe import Recipe
from ham_ray.workflows import checks


def pretrained(recipes: Iterable[Recipe]) -> list[Architecture]:
    """List the architectures of these recipes that start from pretrained weights, each once."""
    result = {one.name: one for recipe in recipes if (one := registry.architecture(recipe.family)).pretrained}
    return list(result.values())


def sources(specs: list[str], recipes: Iterable[Recipe]) -> dict[str, str]:
    """Choose what each pretrained architecture of these recipes starts from, by name: `imagenet`, `none`, or a file.

    Args:
        specs: each `imagenet`, `none`, the path or URI of a file or of a folder of files named by architecture, or
            `ARCHITECTURE=` one of the first three, which goes before the others.

    Raises:
        UserError: a file is missing or holds no weights, it is not clear whose a file is, or an architecture has none.
    """
    names = [one.name for one in pretrained(recipes)]
    of_one: dict[str, str] = {}
    of_all = []
    for spec in dict.fromkeys(specs):
        name, source = _split(spec)
        if not name:
            of_all.append(spec)
        elif name in of_one:
            raise UserError(f"--weights {name}: given as {of_one[name]} and as {source}; leave one of them out")
        else:
            _check(source)
            of_one[name] = source
    others = [name for name in names if name not in of_one]
    if len(of_all) > 1:
        raise UserError(f"--weights {' and '.join(map(shown, of_all))}: whose are they? {_remedy(others, of_all[-1])}")
    result = of_one | (_shared_out(of_all[0], others) if of_all else {})
    if lacking := [name for name in names if name not in result]:
        raise UserError(
            f"--weights: nothing for {listed(lacking)}; add --weights {lacking[0]}=FILE, =imagenet or =none"
        )
    return {name: result[name] for name in names}


def _split(spec: str) -> tuple[str, str]:
    """Split `ARCHITECTURE=SOURCE` in two; of anything else return an empty name and the whole text."""
    name, equals, source = spec.partition("=")
    known = registry.architectures()
    if not equals or not re.fullmatch(r"[\w-]+", name) or (name not in known and _exists(spec)):
        return "", spec
    if name not in known:
        takers = [one.name for one in known.values() if one.pretrained]
        raise UserError(f"--weights {shown(spec)}: {unknown_name('architecture', name, takers)}")
    if known[name].pretrained is None:
        raise UserError(f"--weights {shown(spec)}: {name} is trained from scratch; leave it out")
    return name, source


def _shared_out(spec: str, names: list[str]) -> dict[str, str]:
    """Choose what these architectures start from by a spec that names none of them."""
    if spec in ("imagenet", "none"):
        return dict.fromkeys(names, spec)
    if storage.is_folder(spec):
        return _in_folder(spec, names)
    _check(spec)
    if len(names) > 1:
        raise UserError(f"--weights {shown(spec)}: one file for {' and '.join(names)}; {_remedy(names, spec)}")
    return dict.fromkeys(names, spec)


def _remedy(names: list[str], source: str) -> str:
    return (
        f"write --weights {names[0] if names else 'ARCHITECTURE'}={shown(source)}, and one for each other architecture"
    )


def _in_folder(folder: str, names: list[str]) -> dict[str, str]:
    """Find one .h5 file in a folder for each of these architectures: `NAME.h5`, or `NAME`, one of `_.-` and more."""
    result: dict[str, list[str]] = {name: [] for name in names}
    for file in storage.listdir(folder):
        owners = [name for name in registry.architectures() if re.match(rf"{re.escape(name)}[_.-]", file)]
        if file.endswith(".h5") and owners and (owner := max(owners, key=len)) in result:
            result[owner].append(file)
    for name, files in result.items():
        if len(files) != 1:
            fault = f"{listed(files)} all begin with {name}" if files else f"no .h5 file in it begins with {name}"
            raise UserError(f"--weights {shown(folder)}: {fault}; add --weights {name}=FILE")
        _check(storage.join(folder, files[0]))
    return {name: storage.join(folder, files[0]) for name, files in result.items()}


def _exists(spec: str) -> bool:
    try:
        return storage.exists(spec)
    except (UserError, OSError, ValueError):
        return False


def _check(source: str) -> None:
    """Refuse a file that holds no weights, before a network is built to take them."""
    if source not in ("imagenet", "none"):
        checks.weights(source)

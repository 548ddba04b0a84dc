"""The text of a search space: YAML, read within limits, each mistake with its line.

Words and numbers are YAML 1.2's: `off`, `on`, `yes` and `no` are words, which may name choices (only `true` and `false`
may not), and 1e-3 is a number. `null` is a word as well; nothing is written `~`, or not at all.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from ham_ray.errors import UserError, shown

_LARGEST = 100_000  # bytes: a space of every recipe field takes 3,000
_MOST = 10_000  # entries, those counted several times that aliases repeat
_KINDS = {f"tag:yaml.org,2002:{kind}" for kind in ("map", "seq", "str", "int", "float", "bool", "null", "merge")}


class _Loader(yaml.SafeLoader):
    """A SafeLoader with fewer kinds of values."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in found if not tag.endswith((":bool", ":float", ":null", ":timestamp"))]
    for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"~?$"), ["~", ""])
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"(true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"[-+]?(\d[\d_]*\.[\d_]*|\.\d[\d_]*|\d[\d_]*(?=[eE]))([eE][-+]?\d+)?$|[-+]?\.(inf|Inf|INF)$|\.(nan|NaN|NAN)$"
    ),
    list("-+0123456789."),
)


def read(path: str | Path) -> tuple[yaml.Node, dict[str, Any]]:
    """Read a file's names and values, and the nodes that know their lines.

    Raises:
        UserError: `file:line: what is wrong`.
    """
    text = _text(path)
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
        if root is None or not isinstance(root, yaml.MappingNode):
            raise UserError(f"{path}:1: expected names and values such as 'learning_rate: 1.0e-3'")
        _check(root, path)
        return root, loader.construct_document(root)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise UserError(f"{path}:{line}: not YAML: {error.problem}") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise UserError(f"{path}:{line}: not YAML: character {error.character!r} is not allowed") from None
    except RecursionError:
        raise UserError(f"{path}: nested too deeply; a space has three levels of names") from None
    except (ValueError, KeyError) as error:  # of a number of thousands of digits, of `!!bool maybe`
        raise UserError(f"{path}: a value that cannot be read: {str(error)[:100]}") from None


def _text(path: str | Path) -> str:
    try:
        if Path(path).exists() and not Path(path).is_file():
            raise UserError(f"cannot read the space {shown(path)}: not a file")
        with Path(path).open("rb") as file:
            content = file.read(_LARGEST + 1)
    except OSError as error:
        raise UserError(f"cannot read the space {shown(path)}: {error.strerror}") from None
    if len(content) > _LARGEST:
        raise UserError(f"cannot read the space {shown(path)}: larger than {_LARGEST:,} bytes, which no space is")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}:{line}: not UTF-8 text: byte {content[error.start]:#04x}") from None


def _check(root: yaml.Node, path: str | Path) -> None:
    """Refuse a name that stands twice, a kind of value that no space has, and aliases that expand to too many entries.

    Entries are counted from the inside out, each node once: however many lines aliases stand for, this is quick.
    """
    counts: dict[int, int] = {}

    def count(node: yaml.Node) -> int:
        if id(node) in counts:
            return counts[id(node)]
        counts[id(node)] = _MOST + 1  # of a node that holds itself
        _check_node(node, path)
        parts = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
        counts[id(node)] = 1 + (0 if isinstance(node, yaml.ScalarNode) else sum(map(count, parts)))
        return counts[id(node)]

    if count(root) > _MOST:
        raise UserError(f"{path}: more than {_MOST:,} entries, those included that aliases (*name) repeat")


def _check_node(node: yaml.Node, path: str | Path) -> None:
    if node.tag not in _KINDS:
        kind = node.tag.removeprefix("tag:yaml.org,2002:")
        raise UserError(f"{path}:{node.start_mark.line + 1}: {kind!r} is no kind of value here")
    seen: dict[str, int] = {}
    for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
        name, line = str(key.value), key.start_mark.line + 1
        if name in seen and isinstance(key, yaml.ScalarNode):
            raise UserError(f"{path}:{line}: {name!r} stands here and in line {seen[name]}: leave one of them out")
        seen[name] = line

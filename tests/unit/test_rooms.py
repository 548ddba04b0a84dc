"""No import runs from a lower room to a higher one: what is below can be read, tested and used without the rest."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit
ROOT = Path(__file__).parents[2]
# From low to high; a module belongs to the longest of these names that it begins with. A recipe asks an architecture
# what it may say of it, so the registry is below recipes, and what builds networks of them above.
ROOMS = (
    "errors storage progress hardware supervision",
    "runs resumable console",
    "cluster waiting pool",
    "data models.registry models.architecture models.architectures models.vision_transformer"
    " models.folding models.gradcam",
    "evaluation",
    "recipe recipe_fields",
    "models",
    "training",
    "search inference",
    "report",
    "command_line workflows",
    "workflows.steps",
    "__main__",
)
LEVELS = {f"ham_ray.{name}": level for level, names in enumerate(ROOMS) for name in names.split()} | {"ham_ray": 0}
# A job's module has its options, which what the job does reads, and imports what it does when it is run.
LAZY = "ham_ray.workflows"


def modules() -> dict[str, Path]:
    paths = (ROOT / "ham_ray").rglob("*.py")
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}


def level(module: str) -> int:
    names = [name for name in LEVELS if module == name or (module.startswith(f"{name}.") and name != "ham_ray")]
    assert names, f"{module} is in no room: write it into ROOMS"
    return LEVELS[max(names, key=len)]


def imports(path: Path, known: set[str]) -> set[str]:
    """The modules of this project that a file imports, within functions too; not those for types alone."""
    tree = ast.parse(path.read_text())
    typing = {node for block in ast.walk(tree) if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.dump(block.test)
              for node in ast.walk(block)}  # fmt: skip
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node not in typing and (node.module or "").startswith("ham_ray"):
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                found.add(full if full in known else str(node.module))
    return found


@pytest.mark.parametrize("module", sorted(modules()))
def test_no_import_runs_upwards(module: str):
    known = set(modules())
    above = {other for other in imports(modules()[module], known) if level(other) > level(module)}
    assert not above or (module.startswith(LAZY) and all(other.startswith("ham_ray.workflows") for other in above))


def test_an_import_upwards_would_be_seen(tmp_path: Path):
    (tmp_path / "m.py").write_text("def f():\n    from ham_ray.report import summary\n")
    assert imports(tmp_path / "m.py", set(modules())) == {"ham_ray.report.summary"}
    assert level("ham_ray.report.summary") > level("ham_ray.data.card")

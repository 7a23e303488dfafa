"""The floors: a module imports only from its own floor or below."""

import ast
from collections import Counter
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
PACKAGE = TESTS.parent / "covid_jax"
FLOORS = {
    "errors": 0,
    "stopping": 0,
    "command": 0,
    "device": 0,
    "files": 0,
    "cache": 0,
    "label_space": 0,
    "values": 0,
    "lock": 1,
    "config": 1,
    "data": 2,
    "model": 2,
    "transfer": 3,
    "training": 4,
    "inference": 5,
    "nnunet": 6,
    "evaluation": 6,
    "studies": 7,
    "reporting": 8,
}
COMMAND = 9


def part_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {
        name for name in found if name.startswith("covid_jax.") and name != "covid_jax.__version__"
    }


MODULES = sorted({*PACKAGE.rglob("*.py")} - {PACKAGE / "__init__.py"})  # which is above all


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.stem)
def test_a_module_imports_only_from_its_floor_or_below(path):
    part = path.relative_to(PACKAGE).with_suffix("").parts[0]
    floor = FLOORS.get(part, COMMAND)
    for name in imports(path):
        other = part_of(name)
        assert other in FLOORS, f"{path} imports the command {name}"
        assert FLOORS[other] <= floor, f"{path} imports {name} from above"
        assert {part, other} != {"data", "model"}, f"{path}: data and model do not know each other"


def test_no_two_test_files_have_one_name():
    """Tests are no package: a process that is started would find the wrong one."""
    counts = Counter(path.name for path in TESTS.rglob("*.py"))
    assert [name for name, count in counts.items() if count > 1] == []


def test_the_step_needs_no_image_library():
    """The training step runs on machines that lack grain and every image library."""
    seen, todo = set(), {"training/step.py", "training/state.py", "training/parallel.py"}
    while todo:
        name = todo.pop()
        seen.add(name)
        path = PACKAGE / name
        for module in imports(path):
            parts = module.split(".")[1:]
            for depth in (len(parts), len(parts) - 1):
                name = "/".join(parts[:depth])
                for file in (f"{name}.py", f"{name}/__init__.py"):
                    if (PACKAGE / file).is_file() and file not in seen:
                        todo.add(file)
    text = "\n".join((PACKAGE / name).read_text() for name in seen)
    for library in ("grain", "nibabel", "SimpleITK", "pydicom", "highdicom", "skimage"):
        assert f"import {library}" not in text
        assert f"from {library}" not in text

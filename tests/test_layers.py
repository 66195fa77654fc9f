"""How the package is built: imports only point downwards, heavy libraries stay where they belong, parts stay small."""

import ast
import re
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from tsr_swarm.cli.main import COMMANDS

PACKAGE = Path(__file__).parents[1] / "tsr_swarm"
LAYERS = [  # bottom to top; a unit may import itself and whatever is on a line above its own
    {"errors"},
    {"config", "lowrank", "telemetry"},
    {"optim", "rounds", "wire", "process"},
    {"transport"},
    {"discovery"},
    {"train", "baselines"},
    {"exchange"},
    {"storage"},
    {"node"},
    {"simulate", "plan", "local", "monitor"},
    {"cli"},
]
RANK = {unit: rank for rank, units in enumerate(LAYERS) for unit in units}
GENERATED = PACKAGE / "wire" / "v1"
FILES = sorted(path for path in PACKAGE.rglob("*.py") if GENERATED not in path.parents)
TREES = {path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_text()) for path in FILES}

FILE_LINES, FUNCTION_LINES, FOLDER_SHARE = 400, 60, 0.2


def imports(name: str) -> Iterator[str]:
    """Every module, or name in one, that a file imports anywhere in it."""
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}:{node.lineno}: use absolute imports"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def unit_of(name: str) -> str:
    return name.partition("/")[0].removesuffix(".py")


def length(node: ast.FunctionDef | ast.AsyncFunctionDef, without_head: bool) -> int:
    """Lines of a function; of a command's the body alone, since its parameters are the command's options."""
    first = node.body[0].lineno if without_head else node.lineno
    return (node.end_lineno or first) - first + 1


def test_imports_point_downwards_and_never_sideways() -> None:
    wrong = [
        f"{name} imports {module}"
        for name in TREES
        for module in imports(name)
        if module.startswith("tsr_swarm.") and (target := module.split(".")[1]) in RANK
        if (unit := unit_of(name)) in RANK and unit != target and RANK[target] >= RANK[unit]
    ]
    assert wrong == []


def test_every_unit_has_a_layer() -> None:
    assert {unit_of(name) for name in TREES if not name.startswith("__")} == set(RANK)


@pytest.mark.parametrize(
    ("library", "home"),
    [
        ("grpc", "transport/"),
        ("hivemind", r"discovery/dht\.py"),
        ("torch", "(?!(rounds|telemetry|monitor|cli)/)"),
        ("asyncio", "(?!(rounds|config|lowrank|optim|wire)/)"),
    ],
)
def test_a_library_is_imported_only_where_it_belongs(library: str, home: str) -> None:
    importers = {name for name in TREES if any(module.partition(".")[0] == library for module in imports(name))}
    assert importers
    assert [name for name in importers if not re.match(home, name)] == []


@pytest.mark.parametrize(
    ("modules", "slow"),
    [
        ([f"cli.{name}" for name in COMMANDS], {"torch", "textual", "grpc", "hivemind", "matplotlib", "rich"}),
        (["monitor.app", "telemetry.log"], {"torch", "grpc", "hivemind"}),
    ],
)
def test_what_is_slow_is_loaded_only_once_it_is_needed(modules: list[str], slow: set[str]) -> None:
    """Help is there at once, and a bad option is refused before torch is read."""
    loads = ", ".join(f"tsr_swarm.{name}" for name in modules)
    script = f"import sys, {loads}, tsr_swarm.cli.main as main; main.run(['--help']); print({slow} & {{*sys.modules}})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("\nset()\n")


def test_the_init_of_a_sub_package_is_its_description_and_nothing_else() -> None:
    inits = [name for name in TREES if name.endswith("/__init__.py")]
    assert [name for name in inits if ast.get_docstring(TREES[name]) is None or len(TREES[name].body) != 1] == []


def test_no_two_public_classes_have_the_same_name() -> None:
    places = defaultdict(list)
    for name, tree in TREES.items():
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(name)
    assert {name: files for name, files in places.items() if len(files) > 1} == {}


def test_no_file_is_long() -> None:
    lines = {path.relative_to(PACKAGE).as_posix(): len(path.read_text().splitlines()) for path in FILES}
    assert {name: count for name, count in lines.items() if count > FILE_LINES} == {}


def test_no_function_is_long() -> None:
    found = {}
    for name, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                found[f"{name}: {node.name}"] = length(node, without_head=name.startswith("cli/"))
    assert {name: count for name, count in found.items() if count > FUNCTION_LINES} == {}


def test_no_folder_is_a_large_part_of_the_package() -> None:
    lines = Counter[str]()
    for path in FILES:
        lines[unit_of(path.relative_to(PACKAGE).as_posix())] += len(path.read_text().splitlines())
    total = lines.total()
    assert {unit: count for unit, count in lines.items() if count > FOLDER_SHARE * total} == {}


def test_the_map_names_files_that_exist() -> None:
    """tsr_swarm/README.md and the pages of folders, for people who look for where a thing lives."""
    root = PACKAGE.parent
    named = re.findall(
        r"`((?:tests/)?\w+/[\w/]*\.py)`", "".join(page.read_text() for page in PACKAGE.rglob("README.md"))
    )
    assert named
    assert [name for name in named if not (root / name).exists() and not (PACKAGE / name).exists()] == []

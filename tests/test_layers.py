"""The import graph only points downwards, and heavy libraries stay where they belong."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

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


def imports(path: Path) -> Iterator[str]:
    """Every module, or name in one, that a file imports anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: use absolute imports"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def unit_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def importers_of(library: str) -> set[str]:
    users = (path for path in FILES if any(name.partition(".")[0] == library for name in imports(path)))
    return {path.relative_to(PACKAGE).as_posix() for path in users}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_point_downwards_and_never_sideways(path: Path) -> None:
    unit = unit_of(path)
    targets = {name.split(".")[1] for name in imports(path) if name.startswith("tsr_swarm.")}
    if unit in RANK:
        for target in targets & set(RANK) - {unit}:
            assert RANK[target] < RANK[unit], f"{unit} may not import {target}"


def test_every_unit_has_a_layer() -> None:
    units = {unit_of(path) for path in FILES if path.parent != PACKAGE or not path.name.startswith("__")}
    assert units == set(RANK)


def test_only_the_transport_knows_grpc() -> None:
    assert {name for name in importers_of("grpc") if not name.startswith("transport/")} == set()


def test_only_one_file_knows_hivemind() -> None:
    assert importers_of("hivemind") == {"discovery/dht.py"}


def test_what_people_look_at_does_not_load_torch() -> None:
    assert {name for name in importers_of("torch") if name.startswith(("telemetry/", "monitor/", "cli/"))} == set()


def test_decisions_and_mathematics_know_no_event_loop_and_decisions_no_tensors() -> None:
    pure = ("rounds/", "config/", "lowrank/", "optim/", "wire/")
    assert {name for name in importers_of("asyncio") if name.startswith(pure)} == set()
    assert {name for name in importers_of("torch") if name.startswith("rounds/")} == set()


def test_inits_of_sub_packages_have_nothing_but_a_docstring() -> None:
    inits = [path for path in FILES if path.name == "__init__.py" and path.parent != PACKAGE]
    bodies = {path: ast.parse(path.read_text()).body for path in inits}
    assert [path for path, body in bodies.items() if any(not isinstance(node, ast.Expr) for node in body)] == []

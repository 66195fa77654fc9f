"""Every key of a run.toml reaches behaviour: a coordinator or a peer of some run reads it for what it does.

Reads are recorded while small swarms train, of which each takes another way through the program. A read counts unless
it only checks, shows or passes on the configuration. A new key is tested as soon as its section has the field.
"""

import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

import tsr_swarm.config
from tests.swarm_rig import run_swarm, tiny_config
from tsr_swarm.config.run import SECTIONS

PACKAGE = Path(tsr_swarm.config.__file__).parents[1]
CARRIERS = {
    PACKAGE / "config" / name for name in ("coerce.py", "effects.py", "load.py", "manifest.py", "render.py", "run.py")
}
CARRIERS.add(Path(__file__))  # a property that reads a key is itself read through here
SWARMS: list[dict[str, Any]] = [
    {
        "optimizer": {"inner": "adam", "outer": "nesterov", "aim": "gradient"},
        "periods": {"k_u": 6, "k_v": 6},
        "wire": {"core_bits": 8, "core_density": 0.5},
    },
    {
        "optimizer": {"local_space": "full", "aim": "displacement", "inner": "lordo", "feedback": True},
        "round": {"budget_kb": 500},
    },
]


def watch(section: type[Any], seen: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Add to ``seen`` each key of a section that is read for behaviour, by its replaced attribute access."""
    keys = {field.name: f"{section.section}.{field.name}" for field in fields(section)}

    def read(instance: Any, name: str) -> Any:
        if name in keys and keys[name] not in seen and is_for_behaviour():
            seen.add(keys[name])
        return object.__getattribute__(instance, name)

    monkeypatch.setattr(section, "__getattribute__", read)


def is_for_behaviour() -> bool:
    """Whether the nearest caller that does not only carry the configuration is one of the package's own files."""
    frame = sys._getframe(2)
    while Path(frame.f_code.co_filename) in CARRIERS:
        if frame.f_code.co_name == "__post_init__":
            return False  # it is checked
        assert frame.f_back is not None
        frame = frame.f_back
    return PACKAGE in Path(frame.f_code.co_filename).parents


async def test_every_key_is_read_by_code_that_acts_on_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[str] = set()
    for section in SECTIONS.values():
        watch(section, seen, monkeypatch)
    for number, changes in enumerate(SWARMS):
        folder = tmp_path / str(number)
        await run_swarm(folder, tiny_config(folder, run={"rounds": 3}, **changes), peers=2)
    every = {f"{name}.{field.name}" for name, section in SECTIONS.items() for field in fields(section)}
    assert every - seen == set()

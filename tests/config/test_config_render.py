"""A run file that is written is read back as it was."""

import dataclasses
import tomllib
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from tsr_swarm.config.load import run_config_from_mapping
from tsr_swarm.config.render import HEADER, render
from tsr_swarm.config.run import SECTIONS, CheckpointConfig, DataConfig, OptimizerConfig, RunConfig

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1)


@given(
    source=st.one_of(TEXT, st.lists(TEXT, min_size=1).map(tuple)),
    folder=TEXT,
    lr=st.floats(0, 1, exclude_min=True),
    rank=st.one_of(st.integers(1, 4096), st.just("d/4")),
    betas=st.tuples(st.floats(0, 1, exclude_max=True), st.floats(0, 1, exclude_max=True)),
)
def test_any_configuration_survives_its_file(
    source: str | tuple[str, ...], folder: str, lr: float, rank: int | str, betas: tuple[float, float]
) -> None:
    config = replace(
        RunConfig(),
        data=DataConfig(source=source),
        optimizer=OptimizerConfig(lr=lr, rank=rank, betas=betas),
        checkpoint=CheckpointConfig(dir=folder),
    )
    assert run_config_from_mapping(tomllib.loads(render(config))) == config


def test_every_key_is_in_the_file_with_its_comment() -> None:
    text = render(RunConfig(), HEADER)
    written = tomllib.loads(text)
    assert {name: set(keys) for name, keys in written.items()} == {
        name: {field.name for field in dataclasses.fields(section)} for name, section in SECTIONS.items()
    }
    assert "rounds = 0  # 0: until stopped" in text
    assert 'dir = "runs/<name>"  # <name>: that of the run' in text
    assert text.startswith("# ")

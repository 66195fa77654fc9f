"""A run file that is written is read back as it was, and differences of two configurations in words."""

import dataclasses
import tomllib
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from tsr_swarm.config.load import run_config_from_mapping
from tsr_swarm.config.render import differences, header, render
from tsr_swarm.config.run import SECTIONS, CheckpointConfig, DataConfig, OptimizerConfig, RunConfig, RunSection

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
    text = render(RunConfig(), header())
    written = tomllib.loads(text)
    assert {name: set(keys) for name, keys in written.items()} == {
        name: {field.name for field in dataclasses.fields(section)} for name, section in SECTIONS.items()
    }
    assert "rounds = 0  # 0: until stopped" in text
    assert 'dir = "runs/<name>"  # <name>: that of the run' in text
    assert text.startswith("# ")


def test_each_key_that_differs_is_named_with_both_values() -> None:
    begun = RunConfig()
    given = replace(begun, run=RunSection(name="chat"), optimizer=OptimizerConfig(lr=0.5))
    assert differences(begun, given) == "run.name = 'my-run' (now 'chat'), optimizer.lr = 'auto' (now 0.5)"
    assert differences(begun, begun) == ""


def test_many_differences_are_cut_and_counted() -> None:
    given = replace(
        RunConfig(),
        run=RunSection(name="chat", seed=1, rounds=2),
        data=DataConfig(parts=3, batch_size=4, sequence_length=5, source="x" * 1000),
    )
    text = differences(RunConfig(), given)
    assert text.count("(now ") == 5
    assert text.endswith(", and 2 more")
    assert len(text) < 400

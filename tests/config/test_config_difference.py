"""How two configurations differ, in words."""

from dataclasses import replace

from tsr_swarm.config.render import differences
from tsr_swarm.config.run import DataConfig, OptimizerConfig, RunConfig, RunSection


def test_each_key_that_differs_is_named_with_both_values() -> None:
    begun = RunConfig()
    given = replace(begun, run=RunSection(name="chat"), optimizer=OptimizerConfig(lr=0.5))
    assert differences(begun, given) == "run.name = 'my-run' (now 'chat'), optimizer.lr = 0.03 (now 0.5)"
    assert differences(begun, begun) == ""


def test_of_many_keys_the_first_are_named_and_the_rest_counted() -> None:
    given = replace(
        RunConfig(),
        run=RunSection(name="chat", seed=1, rounds=2),
        data=DataConfig(parts=3, batch_size=4, sequence_length=5, source="x" * 1000),
    )
    text = differences(RunConfig(), given)
    assert text.count("(now ") == 5
    assert text.endswith(", and 2 more")
    assert len(text) < 400


def test_a_run_is_kept_under_its_name_unless_a_folder_is_named() -> None:
    config = replace(RunConfig(), run=RunSection(name="chat"))
    assert config.folder == "runs/chat"
    assert replace(config, checkpoint=replace(config.checkpoint, dir="mine/<name>-1")).folder == "mine/chat-1"
    assert replace(config, checkpoint=replace(config.checkpoint, dir="runs/my-run")).folder == "runs/my-run"

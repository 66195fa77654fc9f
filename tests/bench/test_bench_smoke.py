"""Every bench runs at size 1, through its command, and leaves its page in the folder that it is given."""

import gc
import hashlib
import io
import json
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import transformers

from tests.bench import catch_up, lab, measure, optimizer, payloads, screenshot, step
from tests.bench.finetune import __main__ as finetune
from tests.bench.finetune import dataset
from tests.bench.finetune.jobs import SEARCH_SEED
from tests.bench.finetune.methods import METHODS
from tests.bench.json_lines import JsonLines
from tests.bench.scale import __main__ as scale
from tests.bench.study import __main__ as study
from tests.bench.study.stages import FULL_STAGE, RunStore
from tests.bench.survive import __main__ as survive
from tests.bench.tables import RESULTS
from tsr_swarm.errors import RunError
from tsr_swarm.simulate.heterogeneity import Heterogeneity
from tsr_swarm.simulate.runner import Progress

TINY = ["model.hidden_size=32", "model.intermediate_size=48", "model.num_hidden_layers=1", "periods.k_x=2"]


@pytest.mark.parametrize(
    ("main", "options", "page"),
    [
        pytest.param(catch_up.main, "--model tiny --missed 5 --aims seed", "catch-up.md", id="catch_up"),
        pytest.param(step.main, "--model tiny --repeats 1 --threads 1", "step.md", id="step"),
        pytest.param(optimizer.main, "--seeds 0 --steps 2 --ranks 16 --rates 0.003", "optimizer.md", id="optimizer"),
        pytest.param(payloads.main, "--sources normal --bits 2", "payloads.md", id="payloads"),
        pytest.param(study.main, "table", "study.md", id="study"),
        pytest.param(scale.main, "--sizes 2", "scale.md", id="scale"),
        pytest.param(
            measure.main,
            f"quickstart --seeds 0 --rounds 1 --no-dht {' '.join(f'--set {key}' for key in TINY)}",
            "quickstart.md",
            id="measure",
            marks=pytest.mark.e2e,
        ),
        pytest.param(
            lab.main, "--repeats 1 --modes proxy --only partitions", "lab.md", id="lab", marks=pytest.mark.e2e
        ),
    ],
)
def test_a_bench_writes_its_page(main: Callable[[list[str]], None], options: str, page: str, tmp_path: Path) -> None:
    gc.freeze()  # the step bench looks at all live objects, again and again: at its own ones only
    try:
        main([*options.split(), "--out", str(tmp_path)])
    finally:
        gc.unfreeze()
    lines = (tmp_path / page).read_text("utf-8").splitlines()
    assert lines[0].startswith("# ")
    assert "Command: `python -m tests.bench." in lines[2]
    assert any(line.startswith("| --- |") for line in lines)


def test_the_screenshot_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = tmp_path / "monitor.svg"
    monkeypatch.setattr("sys.argv", ["screenshot", str(RESULTS / "recorded-run.jsonl"), str(picture)])
    screenshot.main()
    assert picture.read_text("utf-8").startswith("<svg")


def test_an_unfinished_last_line_is_replaced_and_any_other_damage_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "runs.jsonl"
    for number in range(3):
        JsonLines(path).append({"number": number})
        with path.open("a") as file:
            file.write('{"numb')
    assert [document["number"] for document in JsonLines(path).documents] == [0, 1, 2]
    lines = path.read_text("utf-8").splitlines()
    assert [json.loads(line)["number"] for line in lines[:-1]] == [0, 1, 2]
    path.write_text("\n".join([lines[0], '{"numb', lines[1]]), "utf-8")
    with pytest.raises(RunError, match="line 2"):
        JsonLines(path)


def test_processes_that_append_to_one_file_keep_each_others_lines(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    one, other = JsonLines(path), JsonLines(path)
    for number, lines in enumerate((one, other, other, one, other)):
        lines.append({"number": number})
    assert [document["number"] for document in JsonLines(path).documents] == [0, 1, 2, 3, 4]


@pytest.mark.e2e
def test_a_run_with_a_crash_is_checked_kept_and_not_run_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Everything is killed as the second round opens, and the run resumed."""
    options = ["--only", "smoke", "--seeds", "1", "--runs", str(tmp_path / "runs.jsonl"), "--out", str(tmp_path)]
    assert survive.main(options) == 0
    [found] = JsonLines(tmp_path / "runs.jsonl").documents
    assert found["violations"] == []
    assert (found["rounds"], found["forks"], len(found["seconds"]), len(found["back"])) == (3, 0, 1, 3)
    assert survive.main(options) == 0
    assert "0 runs to do" in capsys.readouterr().out
    assert "1 runs, 0 failed" in (tmp_path / "survive.md").read_text("utf-8")


SMALL_STUDY = """
[model]
vocab_size = 270
hidden_size = 16
intermediate_size = 24
num_hidden_layers = 1
num_attention_heads = 2
num_key_value_heads = 2
max_position_embeddings = 32
[data]
source = "{source}"
sequence_length = 16
batch_size = 2
heldout_sequences = 4
[periods]
k_x = 20
"""


def test_a_study_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    for part in range(8):
        (tmp_path / "text" / f"{part}.txt").write_text(f"Once upon a time there were {part} little rabbits.\n" * 40)
    (tmp_path / "small.toml").write_text(SMALL_STUDY.format(source=tmp_path / "text"))
    small = replace(
        FULL_STAGE, setting=str(tmp_path / "small.toml"), candidates=FULL_STAGE.candidates[:2], peers=2,
        search_steps=20, final_steps=40, seeds=(0, 1), heterogeneity=Heterogeneity(heterogeneous=True, vocabulary=270),
    )  # fmt: skip
    finished: list[str] = []

    def stop_in_the_long_runs(news: Progress) -> None:
        finished.extend([news.name] if news.finished else [])
        if news.finished and news.finished.spec["steps"] == small.final_steps:  # the first of them
            raise KeyboardInterrupt

    runs, page = tmp_path / "runs.jsonl", tmp_path / "study-full.md"
    with pytest.raises(KeyboardInterrupt):
        study.run_stage(small, RunStore(runs), tmp_path, progress=stop_in_the_long_runs)
    assert ", 1 of 2 seeds" in page.read_text("utf-8")
    assert "pending" in page.read_text("utf-8")

    with runs.open("rb+") as file:  # the process was killed in the middle of a line: that run is done again
        file.truncate(file.seek(0, 2) - 100)
    del finished[-1]
    for _ in range(2):
        study.run_stage(
            small, RunStore(runs), tmp_path, progress=lambda news: finished.extend([news.name] * bool(news.finished))
        )
    store = RunStore(runs)
    assert len(finished) == len(set(finished))
    assert store.results.keys() == set(finished)
    assert sum(run.spec["steps"] == small.final_steps for run in store.results.values()) == 4
    assert not small.missing_searches(store)
    text = page.read_text("utf-8")
    assert "of 2 seeds" not in text
    assert "each peer has a different kind of text; the text is in 270 BPE tokens" in text
    assert (tmp_path / "study-full-loss-by-time.png").exists()


def tar(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def fill_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny model and 40 sentences in place of what pip would fetch."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "film", *map(str, range(40))]
    folder = cache / dataset.MODEL.sha256[:16]
    config = transformers.BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    transformers.BertForSequenceClassification(config).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(words))
    transformers.BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    ratings = "".join(f"{n}\t{1 - n % 2 * 2}\t{('good', 'bad')[n % 2]} film {n}\n" for n in range(40))
    inner, name = dataset.RATINGS
    archive = tar({f"package/{inner}": tar({name: ratings.encode()})})
    (cache / "sentences.tar.gz").write_bytes(archive)
    sha256 = hashlib.sha256(archive).hexdigest()
    monkeypatch.setattr(
        dataset, "SENTENCES", dataset.Archive(requirement="none==0", file="sentences.tar.gz", sha256=sha256)
    )


def test_fine_tuning_searches_rates_trains_every_method_once_and_writes_its_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill_cache(tmp_path, monkeypatch)
    runs, page = tmp_path / "runs.jsonl", tmp_path / "finetune.md"
    keys = ("run.rounds=2", "periods.k_x=2", "data.parts=2", "data.batch_size=2", "data.sequence_length=8",
            "optimizer.embedding_rank=4", "optimizer.rank=4", "model.hidden_size=16", "model.num_attention_heads=2",
            "model.num_key_value_heads=2", "periods.k_r=2", "periods.k_r_embedding=4")  # fmt: skip
    options = [part for key in keys for part in ("--set", key)]
    options += ["--seeds", "0", "--heldout", "8", "--tune", "8"]
    options += ["--cache", str(tmp_path), "--runs", str(runs), "--out", str(tmp_path)]
    for _ in range(2):
        finetune.main(["search", "--methods", "dense-muon", *options])
    documents = [json.loads(line) for line in runs.read_text().splitlines()]
    rates = [document["lr"] for document in documents]
    assert len(rates) == len(set(rates)) >= 3
    assert {document["seed"] for document in documents} == {SEARCH_SEED}
    text = page.read_text("utf-8")
    assert "pending" in text
    assert all(f"{rate:g} " in text for rate in rates)

    runs.unlink()
    for _ in range(2):
        finetune.main([*options, "--set", "optimizer.lr=1e-3"])
    assert [json.loads(line)["method"] for line in runs.read_text().splitlines()] == list(METHODS)
    text = page.read_text("utf-8")
    assert "pending" not in text
    assert all(method.title in text for method in METHODS.values())

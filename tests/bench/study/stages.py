"""The two stages of the study: many variants in a small setting, then ours and every rival in a harder one."""

from tests.bench.study.candidates import CORE
from tests.bench.study.candidates_full import FULL
from tests.bench.study.stage import Stage
from tsr_swarm.simulate.heterogeneity import Heterogeneity

CORE_STAGE = Stage(
    name="study",
    title="The study: which method learns most from a byte",
    command="python -m tests.bench.study",
    setting="study.toml",
    notes="study_notes.md",
    notes_title="Chosen defaults",
    candidates=CORE,
    search_steps=160,
    final_steps=600,
)
FULL_STAGE = Stage(
    name="study-full",
    title="The study, second stage: a larger model, BPE text, and a kind of text for each peer",
    command="python -m tests.bench.study --stage full",
    setting="study-full.toml",
    notes="study_full_notes.md",
    notes_title="What it says of the first stage",
    candidates=FULL,
    search_steps=120,
    final_steps=400,
    heterogeneity=Heterogeneity(heterogeneous=True, vocabulary=1024),
)

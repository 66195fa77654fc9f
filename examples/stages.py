"""The two stages of the study: many variants in a small setting, then ours and every rival in a harder one."""

from candidates import CORE
from candidates_full import FULL
from studying.stage import Stage

from tsr_swarm.runtime.simulate.world import World

CORE_STAGE = Stage(
    name="study",
    title="The study: which method learns most from a byte",
    command="python examples/study.py",
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
    command="python examples/study.py --stage full",
    setting="study-full.toml",
    notes="study_full_notes.md",
    notes_title="What it says of the first stage",
    candidates=FULL,
    search_steps=120,
    final_steps=400,
    world=World(heterogeneous=True, vocabulary=1024),
)

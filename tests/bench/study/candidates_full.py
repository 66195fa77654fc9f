"""What the second stage compares: ours, and every rival. All go on to the long runs, those first that say most.

Rates: one below and one above the best of the first stage, twice as high; for ours one more below them.
"""

from tests.bench.study.candidates import DENSE, OURS, Candidate, ours, ranks, rival

LOW, ADAM, HIGH, HIGHEST = (1e-3, 2e-3), (2e-3, 4e-3), (4e-3, 8e-3), (8e-3, 1.6e-2)
MUON = (2e-2, 4e-2)

FULL: tuple[Candidate, ...] = (
    ours(OURS, rates=(*MUON, 8e-2), final=True),
    rival(DENSE, "diloco", ADAM, outer="average", final=True),
    rival("DiLoCo int4", "diloco", ADAM, outer="average", bits=4, final=True),
    rival("SparseLoCo 1/64, mean of senders", "sparseloco", ADAM, average="senders", final=True),
    ours("ours, rank d/4", *ranks("d/4", "1/4"), rates=MUON, final=True),
    ours("ours, all directions", *ranks("1", "1"), rates=MUON, final=True),
    rival("DiLoCo int4, Muon", "diloco", MUON, outer="average", bits=4, inner="muon", final=True),
    rival("dense averaging, Muon", "diloco", MUON, outer="average", inner="muon", final=True),
    rival("data-parallel AdamW", "ddp", HIGH, final=True),
    rival("DES-LOC", "des-loc", ADAM, final=True),
    rival("LoRDO rank d/4", "lordo", HIGH, final=True),
    rival("SparseLoCo 1/16, mean of senders", "sparseloco", LOW, density=1 / 16, average="senders", final=True),
    rival("SparseLoCo 1/64, Muon", "sparseloco", ADAM, inner="muon", average="senders", final=True),
    rival("DiLoCo int8", "diloco", ADAM, outer="average", bits=8, final=True),
    rival("PowerSGD rank 4, every step", "powersgd", ADAM, rank=4, final=True),
    rival("PowerSGD rank 8, every 20th step", "powersgd", ADAM, rank=8, k_x=20, final=True),
    rival("Local Adam", "local-adam", ADAM, final=True),
    rival("TSR-Adam, every step", "tsr-adam", HIGHEST, rank="d/2", embedding_rank="d/4", final=True),
)

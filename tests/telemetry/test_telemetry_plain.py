from dataclasses import replace

from hypothesis import given

from tests.telemetry.examples import ANY_EVENT, CLOSED, LOST, joined, leads, progress
from tsr_swarm.telemetry.events import (
    CatchingUp,
    DataCovered,
    DigestMismatch,
    Event,
    FaultPlaced,
    LabReady,
    PayloadRefused,
    PeerLeft,
    PhaseChanged,
    StateReceived,
)
from tsr_swarm.telemetry.plain import describe, is_alert

HOSTILE = "\x1b[31mot\nter\u202e"


@given(event=ANY_EVENT)
def test_every_event_is_one_harmless_line_or_none(event: Event) -> None:
    line = describe(event)
    assert line is None or (line and line.isprintable())


def test_a_closed_round_tells_loss_peers_and_bytes() -> None:
    wire = {"sent": {"core": 400_000, "control": 100}, "received": {"core": 600_000}}
    counts = replace(CLOSED, round=7, peers=4, included=3, late=1, wire_bytes=wire, dense_bytes=174_000_000)
    assert describe(replace(counts, seconds=4.2, loss=2.5, local_loss=2.6)) == (
        "round 7 closed in 4.2 s: loss 2.500 (local 2.600), 3 of 4 peers, 1 late, 1.00 MB, 174x less than dense"
    )


def test_a_peer_that_left_has_its_reason() -> None:
    assert describe(PeerLeft(peer="ab", name="otter", reason="asked to")) == "peer otter left: asked to"


def test_a_peer_without_an_address_is_client_only() -> None:
    assert describe(joined("otter", 2)) == "peer 2 otter joined (cpu, core, client-only)"


def test_progress_and_most_phases_are_not_worth_a_line() -> None:
    assert describe(progress("otter", 1, 1)) is None
    assert describe(PhaseChanged(round=1, phase="commit", deadline=None, reason="")) is None


def test_a_deadline_has_its_reason() -> None:
    event = PhaseChanged(round=3, phase="exchange", deadline=12.0, reason="median + 3 MAD")
    assert describe(event) == "round 3 exchange, closes in 12 s (median + 3 MAD)"


def test_names_and_reasons_from_peers_are_harmless() -> None:
    refused = PayloadRefused(round=1, peer="ab", name=HOSTILE, reason="length", message="too\x07 long")
    assert describe(refused) == "round 1: refused [31mot ter (length): too long"
    assert is_alert(refused)


def test_a_differing_digest_is_an_error() -> None:
    event = DigestMismatch(round=2, peer="ab", name="otter", expected="a" * 64, digest="b" * 64)
    assert describe(event) == "ERROR round 2: otter has weights bbbbbbbbbbbb, expected aaaaaaaaaaaa"


def test_the_lab_and_its_faults_have_lines() -> None:
    assert describe(LabReady(mode="proxy", reason="As asked.")) == "lab (proxy): As asked."
    assert describe(FaultPlaced(fault="--stop peer-2@3/train:20s", is_over=False)) == "--stop peer-2@3/train:20s begins"
    assert describe(FaultPlaced(fault="--stop peer-2@3/train:20s", is_over=True)) == "--stop peer-2@3/train:20s is over"


def test_a_download_tells_its_donors_and_its_rate_and_a_choice_its_reason() -> None:
    whole = StateReceived(round=5, bytes=3_000_000, seconds=1.5, donors=3)
    assert describe(whole) == "state after round 5 received: 3.00 MB from 3 donors in 1.5 s, 2.00 MB a second"
    resumed = StateReceived(round=5, bytes=3_000_000, seconds=2, donors=1, found_bytes=1_000_000)
    assert describe(resumed) == (
        "state after round 5 received: 3.00 MB from 1 donor in 2.0 s, 1.00 MB a second, 1.00 MB were here already"
    )
    assert describe(StateReceived(round=0, bytes=0, seconds=0)) is not None
    choice = CatchingUp(missed=20, takes_state=False, reason="2.00 MB of rounds instead of 232 MB with the state")
    assert describe(choice) == "missed 20 rounds, replays them: 2.00 MB of rounds instead of 232 MB with the state"


def test_a_leader_is_named_with_what_its_loss_would_mean() -> None:
    assert describe(leads("otter", 1)) == "otter leads: a single point of failure: if it goes, the run waits for it"
    assert describe(leads("otter", 3)) == "otter leads: 3 voters, the run survives the loss of 1 of them"
    assert describe(leads("otter", 5)) == "otter leads: 5 voters, the run survives the loss of 2 of them"
    assert describe(LOST) == "the leader is lost: no word for 6 s"
    assert is_alert(LOST)


def test_the_coverage_of_the_data_and_a_passed_part_have_lines() -> None:
    covered = DataCovered(epoch=1, done=3, parts=8, share=0.375)
    assert describe(covered) == "epoch 1, 37 % of the data"
    passed = replace(covered, part=5, was="otter", now=HOSTILE)
    assert describe(passed) == "part 5 of the data passes from otter to [31mot ter: epoch 1, 37 % of the data"
    assert not is_alert(passed)

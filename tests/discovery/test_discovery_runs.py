"""Which run is meant, and whom of it to dial: of whatever strangers claim."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fixtures import peer_record
from tsr_swarm.discovery.addresses import is_loopback, is_way_in
from tsr_swarm.discovery.identity import new_identity
from tsr_swarm.discovery.records import PeerRecord
from tsr_swarm.discovery.runs import (
    MAX_DIALS,
    MAX_NAMED,
    MAX_RUNS,
    FoundRun,
    WantedRun,
    choose_run,
    dial_order,
    find_runs,
    parse_wanted_run,
)
from tsr_swarm.errors import ConfigError, UnreachableError
from tsr_swarm.transport.address import parse_address

NOW = 1_700_000_000.0
PEERS = [new_identity() for _ in range(6)]
PEER_ID = "12D3KooWKwqXvCntmy4fDwmcrt8M2PytogE9EMQbDw1Ec5ZGZwtN"

records = st.builds(
    lambda peer, name, run_id, address, age, round: peer_record(
        PEERS[peer], NOW - age, run=name, run_id=run_id, address=address, round=round
    ),
    st.integers(0, 5),
    st.sampled_from(["chat", "talk"]),
    st.sampled_from(["aaaa1", "aaaa2", "bbbb1"]),
    st.sampled_from(["", "192.0.2.7:7700", "192.0.2.8:1", "127.0.0.1:7700", "localhost:7", "peer.example:9"]),
    st.floats(-500, 500),
    st.integers(0, 9),
)


class Directory:
    """A DHT that answers what it likes."""

    def __init__(self, stored: Sequence[PeerRecord]) -> None:
        self.stored, self.asked = stored, 0

    async def runs(self) -> Sequence[PeerRecord]:
        return self.stored

    async def records(self, run_id: str) -> Sequence[PeerRecord]:
        self.asked += 1
        return [record for record in self.stored if record.run_id == run_id]


@given(stored=st.lists(records, max_size=12), name=st.sampled_from(["chat", "talk"]), prefix=st.sampled_from(["", "a"]))
async def test_runs_are_found_by_name_with_the_records_of_their_peers(
    stored: list[PeerRecord], name: str, prefix: str
) -> None:
    wanted = WantedRun(name, prefix)
    found = await find_runs(Directory(stored), wanted)
    expected = {(r.run, r.run_id) for r in stored if r.run == name and r.run_id.startswith(prefix)}
    assert len(found) == len(expected)
    assert {(run.name, run.run_id) for run in found} == expected
    for run in found:
        assert {(record.run, record.run_id) for record in run.records} == {(run.name, run.run_id)}
        assert run.round == max(record.round for record in run.records)
    if len(expected) == 1:
        assert choose_run(found, wanted).run_id == found[0].run_id


async def test_whoever_floods_the_list_of_runs_costs_a_reader_so_many_look_ups_and_no_more() -> None:
    flood = Directory([peer_record(PEERS[0], run_id=f"run{number}") for number in range(3 * MAX_RUNS)])
    found = await find_runs(flood)
    assert (len(found), flood.asked) == (MAX_RUNS, MAX_RUNS)
    with pytest.raises(ConfigError, match=f"{MAX_RUNS} runs are called 'chat'.* and {MAX_RUNS - MAX_NAMED} more; say"):
        choose_run(found, WantedRun("chat"))


def found_run(run_id: str, peers: int = 1, **changes: int) -> FoundRun:
    return FoundRun(
        name="chat", run_id=run_id, records=tuple(peer_record(p, run_id=run_id, **changes) for p in PEERS[:peers])
    )


def test_of_two_runs_of_one_name_both_are_named_with_size_and_round_and_a_prefix_tells_them_apart() -> None:
    runs = [found_run("3fa2c0", 2, parameters=200_000, round=12), found_run("3fa2d1", parameters=1_000_000, round=3)]
    with pytest.raises(ConfigError) as caught:
        choose_run(runs, WantedRun("chat"))
    assert str(caught.value) == (
        "2 runs are called 'chat': chat@3fa2c (200 k parameters, 2 peers, round 12), "
        "chat@3fa2d (1.00 M parameters, 1 peer, round 3); say which with --run chat@3fa2c."
    )
    assert choose_run(runs, parse_wanted_run("chat@3fa2d")) == runs[1]
    with pytest.raises(UnreachableError, match="No peer of a run 'chat@9'"):
        choose_run(runs, WantedRun("chat", "9"))


@given(found=st.lists(records, max_size=40), seen_from=st.sampled_from(["", "127.0.0.1"]))
def test_whom_to_dial_is_the_freshest_first_each_once_and_nobody_on_a_strangers_loopback(
    found: list[PeerRecord], seen_from: str
) -> None:
    order = dial_order(found, seen_from, NOW)
    assert len(order) == len(set(order)) <= MAX_DIALS
    newest = {r.address: max(min(o.issued, NOW) for o in found if o.address == r.address) for r in found if r.address}
    expected = {a for a in newest if seen_from or not is_loopback(parse_address(a)[0])}
    assert set(order) == expected
    ages = [newest[address] for address in order]
    assert ages == sorted(ages, reverse=True)


def test_no_more_are_dialled_than_a_newcomer_has_patience_for() -> None:
    flood = [peer_record(PEERS[0], NOW, address=f"192.0.2.7:{port}") for port in range(1, 200)]
    assert len(dial_order(flood, "", NOW)) == MAX_DIALS


@given(
    name=st.from_regex(r"[A-Za-z0-9_-]{1,64}", fullmatch=True), prefix=st.from_regex("[a-z0-9]{0,64}", fullmatch=True)
)
def test_a_wanted_run_is_read_as_it_is_written(name: str, prefix: str) -> None:
    wanted = WantedRun(name, prefix)
    assert parse_wanted_run(str(wanted)) == wanted
    assert wanted.matches(name, prefix + "x")
    assert not wanted.matches(name + "x", prefix)


@pytest.mark.parametrize("text", ["", "@", "@a", "a b", "a@b@c", "a@-", "a" * 65, "a@" + "b" * 65, "a\n", "a@b\n"])
def test_what_names_no_run_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is not a run; write its name"):
        parse_wanted_run(text)


@pytest.mark.parametrize(
    ("text", "leads"),
    [
        ("192.0.2.7:7700", True),
        ("[2001:db8::7]:7700", True),
        ("swarm.example.org:7700", True),
        (f"/ip4/192.0.2.7/tcp/7701/p2p/{PEER_ID}", True),
        (f"/dns4/swarm.example.org/tcp/7701/p2p/{PEER_ID}", True),
        ("/ip4/192.0.2.7/tcp/7701", False),
        ("192.0.2.7:0", False),
        ("0.0.0.0:7700", False),
        ("swarm.example.org", False),
        ("", False),
        (f"/ip4/192.0.2.7/tcp/7701/p2p/{PEER_ID},192.0.2.7:7700", False),
    ],
)
def test_a_way_into_the_dht_is_a_multiaddr_or_the_address_of_a_node(text: str, leads: bool) -> None:
    assert is_way_in(text) is leads

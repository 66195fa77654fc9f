"""Which addresses go to whom."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsr_swarm.discovery import addresses
from tsr_swarm.transport.address import Address, parse_address

PEER = "12D3KooWKwqXvCntmy4fDwmcrt8M2PytogE9EMQbDw1Ec5ZGZwtN"
HOSTS = st.one_of(
    st.ip_addresses().map(str),
    st.sampled_from(["127.0.0.1", "127.9.9.9", "::1", "0.0.0.0", "::", "localhost", "swarm.example.org", "10.0.0.5"]),
)
PORTS = st.integers(1, 65535)
REMOTE = st.ip_addresses(v=4, network="203.0.113.0/24").map(str)


@given(hosts=st.lists(HOSTS, max_size=30), port=PORTS, caller=REMOTE, announce=st.sampled_from(["", "example.org"]))
def test_a_remote_caller_is_never_told_to_dial_its_own_loopback(
    hosts: list[str], port: int, caller: str, announce: str
) -> None:
    visible = [f"{addresses.host_multiaddr(host, port)}/p2p/{PEER}" for host in hosts]
    given_out = addresses.multiaddrs_for(caller, visible, announce)
    found = [addresses.host_of(multiaddr) for multiaddr in given_out]
    assert not any(addresses.is_loopback(host) or addresses.is_unspecified(host) for host in found)
    assert len(given_out) == len(set(given_out)) <= addresses.MAX_MULTIADDRS
    assert addresses.dialable(given_out) == given_out
    for host in hosts:
        address = addresses.address_for(caller, str(Address(host, port)))
        assert not address or not addresses.is_loopback(parse_address(address)[0])


@given(host=HOSTS, port=PORTS, caller=REMOTE)
def test_a_peer_elsewhere_is_never_found_on_loopback_whatever_it_says(host: str, port: int, caller: str) -> None:
    address = str(Address(host, port))
    expected = "" if addresses.is_loopback(host) or addresses.is_unspecified(host) else address
    assert addresses.dialable_address(caller, address) == expected
    assert addresses.dialable_address("127.0.0.1", address) == ("" if addresses.is_unspecified(host) else address)


@pytest.mark.parametrize("address", ["", "7702", "host", "host:0", "host:99999", "unix:/tmp/x", "a b:1", "[::1:1"])
def test_text_that_is_not_an_address_cannot_be_dialled(address: str) -> None:
    assert addresses.dialable_address("127.0.0.1", address) == ""


@pytest.mark.parametrize(
    ("caller", "announce", "hosts"),
    [
        ("127.0.0.1", "example.org", ["/ip4/127.0.0.1", "/ip4/10.0.0.5"]),
        ("203.0.113.9", "192.0.2.7", ["/ip4/192.0.2.7", "/ip4/10.0.0.5"]),
        ("203.0.113.9", "2001:db8::7", ["/ip6/2001:db8::7", "/ip4/10.0.0.5"]),
        ("203.0.113.9", "swarm.example.org", ["/dns4/swarm.example.org", "/ip4/10.0.0.5"]),
    ],
)
def test_a_caller_on_this_machine_gets_loopback_first_and_others_the_announced_host(
    caller: str, announce: str, hosts: list[str]
) -> None:
    visible = [f"/ip4/{host}/tcp/4001/p2p/{PEER}" for host in ("10.0.0.5", "127.0.0.1")]
    assert addresses.multiaddrs_for(caller, visible, announce) == tuple(f"{host}/tcp/4001/p2p/{PEER}" for host in hosts)


@pytest.mark.parametrize(
    ("caller", "address", "expected"),
    [
        ("203.0.113.9", "192.0.2.7:7700", "192.0.2.7:7700"),
        ("203.0.113.9", "0.0.0.0:7700", ""),
        ("203.0.113.9", "127.0.0.1:7700", ""),
        ("127.0.0.1", "0.0.0.0:7700", "127.0.0.1:7700"),
        ("127.0.0.1", "127.0.0.1:7700", "127.0.0.1:7700"),
    ],
)
def test_the_address_a_caller_is_given(caller: str, address: str, expected: str) -> None:
    assert addresses.address_for(caller, address) == expected


@given(ip=st.ip_addresses(v=4))
def test_an_ipv4_caller_on_a_dual_stack_socket_is_that_ipv4_host(ip: ipaddress.IPv4Address) -> None:
    assert addresses.is_loopback(f"::ffff:{ip}") == ip.is_loopback == addresses.is_loopback(str(ip))


@pytest.mark.parametrize(("host", "expected"), [("LOCALHOST.", True), ("a.localhost", True), ("localhost.org", False)])
def test_names_that_mean_loopback(host: str, expected: bool) -> None:
    assert addresses.is_loopback(host) is expected


@pytest.mark.parametrize(
    "text",
    [
        "192.0.2.7:7700",
        "/ip4/192.0.2.7/tcp/4001",
        *(f"/ip4/192.0.2.7/tcp/{port}/p2p/{PEER}" for port in (0, 65536)),
        *(f"/ip4/{host}/tcp/4001/p2p/{PEER}" for host in ("0.0.0.0", "2001:db8::7", "example.org")),
        *(f"/dns4/{host}/tcp/4001/p2p/{PEER}" for host in ("192.0.2.7", "a" * 300)),
        f"/ip4/192.0.2.7/tcp/4001/p2p/{PEER},/ip4/192.0.2.8/tcp/4001/p2p/{PEER}",
        f"/unix/tmp/socket/p2p/{PEER}",
    ],
)
def test_multiaddrs_that_cannot_be_dialled_are_left_out(text: str) -> None:
    good = f"/dns4/swarm.example.org/tcp/4001/p2p/{PEER}"
    assert addresses.dialable([text, good, good]) == (good,)


@given(offset=st.floats(-1e6, 1e6), now=st.floats(0, 2e9))
def test_a_clock_is_only_mentioned_beyond_its_limit(offset: float, now: float) -> None:
    warning = addresses.clock_warning(now, now + offset)
    assert (warning is not None) == (abs(now + offset - now) > 3)
    if warning:
        assert ("ahead of" if offset > 0 else "behind") in warning

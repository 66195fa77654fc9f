import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsr_swarm.errors import ConfigError
from tsr_swarm.transport.address import Address, caller_of, parse_address
from tsr_swarm.transport.base import Caller


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:0", Address("127.0.0.1", 0)),
        ("example.org:7700", Address("example.org", 7700)),
        ("my_box:65535", Address("my_box", 65535)),
        ("[::1]:7700", Address("::1", 7700)),
        ("[2001:db8::7]:1", Address("2001:db8::7", 1)),
    ],
)
def test_an_address_is_read_and_written_alike(text: str, address: Address) -> None:
    assert parse_address(text) == address
    assert str(address) == text


BAD = "|:|host|:7700|host:|host:x|host:-1|host:65536|host:٣|::1:7700|[::1]|[host]:1|http://host:1|a b:1|-x:1|host:1 "


@pytest.mark.parametrize("text", [*BAD.split("|"), "[127.0.0.1]:1", "h" * 300 + ":1", "[::1:7700", "host:000001"])
def test_text_that_is_no_address_is_a_configuration_error(text: str) -> None:
    with pytest.raises(ConfigError, match="write host:port"):
        parse_address(text)


@given(st.text(max_size=60))
def test_any_text_is_an_address_or_a_configuration_error(text: str) -> None:
    try:
        address = parse_address(text)
    except ConfigError:
        return
    assert parse_address(str(address)) == address


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("ipv4:127.0.0.1:5000", "127.0.0.1"),
        ("ipv6:[2001:db8::7]:5000", "2001:db8::7"),
        ("ipv6:%5B::ffff:127.0.0.1%5D:5000", "127.0.0.1"),
        ("ipv6:%5Bfe80::1%25eth0%5D:5000", "fe80::1"),
        ("unknown", "unknown"),
    ],
)
def test_a_caller_is_known_by_its_ip_address(peer: str, address: str) -> None:
    assert caller_of(peer) == Caller(address)

"""The options of a client, and deadlines that others count on."""

from tsr_swarm.rounds import follower, leader
from tsr_swarm.transport.limits import CLIENT_OPTIONS, POLL_SECONDS, client_options


def test_a_poll_is_waited_for_as_long_as_the_decisions_wait_and_longer_than_a_leader_holds_it() -> None:
    assert leader.HOLD_SECONDS < POLL_SECONDS == follower.POLL_SECONDS


def test_no_client_goes_through_a_proxy_that_it_was_not_given() -> None:
    assert client_options() == CLIENT_OPTIONS
    assert ("grpc.enable_http_proxy", 0) in CLIENT_OPTIONS


def test_a_client_with_a_proxy_goes_through_that_one_and_is_like_the_others_otherwise() -> None:
    options = dict(client_options("127.0.0.1:9"))
    changed = {"grpc.enable_http_proxy": 1, "grpc.http_proxy": "http://127.0.0.1:9"}
    assert options == {**dict(CLIENT_OPTIONS), **changed}

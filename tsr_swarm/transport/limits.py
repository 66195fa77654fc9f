"""Every deadline and size limit of the transport, and the gRPC options that hold them.

A deadline on each call is the real guard against a peer that has stopped; keepalive is the second. grpcio's keepalive
notices a stopped process only with ``http2.ping_timeout_ms`` set as well.
"""

from tsr_swarm.transport.base import PIECE_BYTES
from tsr_swarm.wire.checks import MAX_CHUNK_BYTES
from tsr_swarm.wire.compression import max_wire_bytes
from tsr_swarm.wire.messages import MAX_CERTIFICATE_BYTES, MAX_HEADER_BYTES, MAX_SIGNATURE_BYTES

CONTROL_SECONDS = 10.0  # a small request and a small reply; a manifest has up to 4 MiB: HELLO_SECONDS
HELLO_SECONDS = 30.0
POLL_SECONDS = 5.0  # longer than a leader holds a poll, as long as rounds/follower.py waits for its answer
DESCRIBE_SECONDS = 60.0  # the state may have to be put together first
DEADLINE_GRACE_SECONDS = 0.25  # after it, a deadline is held without gRPC's help
STALL_SECONDS = 60.0  # the longest silence inside a stream, in either direction
TRANSFER_SECONDS = 3600.0  # one payload or one download, however slow the connection
STOP_SECONDS = 2.0  # for calls under way when the server stops

MAX_CONTROL_BYTES = 64 << 10
_ROOM = 4096  # of protobuf and gRPC, around the largest field
MAX_REQUEST_BYTES = max(PIECE_BYTES, MAX_HEADER_BYTES + MAX_SIGNATURE_BYTES + MAX_CERTIFICATE_BYTES) + _ROOM
MAX_REPLY_BYTES = max_wire_bytes(MAX_CHUNK_BYTES) + _ROOM  # a state chunk; the manifest is no larger
MAX_CONCURRENT_RPCS = 1024

Option = tuple[str, int | str]

_COMMON: tuple[Option, ...] = (
    ("grpc.compression_enabled_algorithms_bitset", 1),  # none: payloads are zstd already, and it is one bomb less
    ("grpc.max_metadata_size", 8 << 10),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.ping_timeout_ms", 10_000),
)

SERVER_OPTIONS: tuple[Option, ...] = (
    *_COMMON,
    ("grpc.max_receive_message_length", MAX_REQUEST_BYTES),
    ("grpc.max_send_message_length", MAX_REPLY_BYTES),
    ("grpc.max_concurrent_streams", 16),  # of one connection
    ("grpc.so_reuseport", 0),  # a port in use is an error, not a second server
    ("grpc.server_handshake_timeout_ms", 10_000),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.http2.max_ping_strikes", 2),
    ("grpc.max_connection_age_ms", 3_600_000),
    ("grpc.max_connection_age_grace_ms", int(TRANSFER_SECONDS * 1000)),
)

CLIENT_OPTIONS: tuple[Option, ...] = (
    *_COMMON,
    ("grpc.max_receive_message_length", MAX_REPLY_BYTES),
    ("grpc.max_send_message_length", MAX_REQUEST_BYTES),
    ("grpc.keepalive_time_ms", 20_000),  # twice what the server tolerates
    ("grpc.keepalive_permit_without_calls", 0),
    ("grpc.http2.max_pings_without_data", 0),  # unlimited: a poll waits in silence
    ("grpc.enable_retries", 0),  # callers repeat calls themselves
    ("grpc.use_local_subchannel_pool", 1),  # a connection for each client, also to the same address
    ("grpc.enable_http_proxy", 0),  # a proxy for web pages neither reaches a neighbour nor lets HTTP/2 through
    ("grpc.initial_reconnect_backoff_ms", 500),
    ("grpc.min_reconnect_backoff_ms", 10_000),  # in spite of its name: how long one attempt to connect may take
    ("grpc.max_reconnect_backoff_ms", 5_000),  # a restarted coordinator is found within seconds
)


def client_options(proxy: str | None = None) -> tuple[Option, ...]:
    """CLIENT_OPTIONS, or those of a client whose every connection goes through the HTTP proxy at ``proxy``."""
    if proxy is None:
        return CLIENT_OPTIONS
    own = tuple(option for option in CLIENT_OPTIONS if option[0] != "grpc.enable_http_proxy")
    return (*own, ("grpc.enable_http_proxy", 1), ("grpc.http_proxy", f"http://{proxy}"))

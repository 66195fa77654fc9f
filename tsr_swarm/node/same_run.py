"""Whether a caller is of this very run. Raises RefusedError with what to do about it."""

from tsr_swarm import __version__
from tsr_swarm.config.manifest import PROTOCOL_VERSION, Manifest
from tsr_swarm.errors import RefusedError
from tsr_swarm.wire import checks
from tsr_swarm.wire.v1 import swarm_pb2 as pb


def require_protocol(request: pb.HelloRequest) -> None:
    """It speaks as this program does."""
    checks.check_hello(request)
    if request.protocol != PROTOCOL_VERSION:
        raise RefusedError(
            f"You speak protocol {request.protocol} (tsr-swarm {request.package_version}), this run speaks "
            f"{PROTOCOL_VERSION} (tsr-swarm {__version__}); install tsr-swarm {__version__}."
        )


def require_run(manifest: Manifest, digest: bytes) -> None:
    """It was set up for this manifest."""
    if digest.hex() != manifest.digest:
        raise RefusedError(
            f"You are set up for another run ({digest.hex()[:12]}) than '{manifest.config.run.name}' "
            f"({manifest.digest[:12]}); join in a new folder, without --resume."
        )

"""Every error the package raises on purpose, split by what the caller should do about it.

SwarmError              one sentence for the user: what, value, limit, next step
├── ConfigError         exit 78: fix the configuration, nothing was started
├── UnreachableError    exit 69: the coordinator did not answer; trying again may help
├── RefusedError        exit 76: the other side said no (version, manifest); trying again will not help
├── PeerError           leave this peer's bytes out of the round and carry on
└── RunError            exit 1: this process cannot go on
    └── CheckpointError   a checkpoint is missing, damaged or of another run
"""


class SwarmError(Exception):
    """Base of all expected failures. ``str(error)`` is what the user reads."""

    exit_code = 1


class ConfigError(SwarmError):
    """A setting is unknown, out of range, or contradicts another."""

    exit_code = 78


class UnreachableError(SwarmError):
    """A remote address did not answer within its deadline."""

    exit_code = 69


class RefusedError(SwarmError):
    """The other side answered and refused, or offered something this side must refuse."""

    exit_code = 76


class PeerError(SwarmError):
    """Bytes from a peer broke a rule. ``reason`` is a short stable word for counters and events."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class RunError(SwarmError):
    """This process cannot continue its run."""


class CheckpointError(RunError):
    """A checkpoint cannot be written, is damaged, or belongs to another run."""

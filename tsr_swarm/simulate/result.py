"""What came out of a period and of a run, and the results of finished runs on disk, one JSON file each."""

import json
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tsr_swarm.baselines.method import ExchangeBytes
from tsr_swarm.config.link import Link
from tsr_swarm.errors import RunError
from tsr_swarm.process.machine_limits import disk_errors
from tsr_swarm.simulate.run_spec import RunSpec
from tsr_swarm.storage.files import replace_file


@dataclass(frozen=True, slots=True, kw_only=True)
class ExchangeResult:
    """What one period and the exchange after it came to."""

    traffic: ExchangeBytes
    extra_steps: int = 0  # what a peer computes beside its local steps, in times of one step
    tokens: int  # of all peers
    losses: tuple[float, ...]  # of local steps, nats a token; only finite ones
    digest: str = ""  # of the consensus after it, where there is one


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """Where a run was after ``step`` steps. All counts are from its start."""

    step: int
    tokens: int  # of all peers
    loss: float | None  # held-out, nats a token; None: not a number
    local_loss: float | None  # mean over the local steps since the point before
    sent: Mapping[str, float]  # wire bytes of one peer (mean over those that took part) by payload kind
    received: Mapping[str, float]
    round_trips: int
    step_times: float  # duration of the local steps, in times of one step of an ordinary peer

    @property
    def bytes_sent(self) -> float:
        return sum(self.sent.values())

    @property
    def bytes_received(self) -> float:
        return sum(self.received.values())

    @property
    def bytes_total(self) -> float:
        return self.bytes_sent + self.bytes_received

    def seconds(self, link: Link) -> float:
        """Return the simulated wall time of a peer on ``link``."""
        return link.seconds(self.step_times, self.bytes_sent, self.bytes_received, self.round_trips)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """A run's curve, and where it was made. Only ``about`` may differ when a run is repeated."""

    name: str
    spec: Mapping[str, Any]  # RunSpec.identity()
    parameters: int
    period: int  # local steps between two exchanges
    text: str  # hash of all text that was read, so that runs on different texts are not compared
    curve: tuple[Point, ...]
    digests: tuple[str, ...]  # own method: of the consensus after each round
    ended: str = ""  # why it ended before its last step, such as weights that are no numbers any more
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def loss(self) -> float | None:
        """Final held-out loss, nats a token; None for a run that diverged."""
        return None if self.ended else self.curve[-1].loss

    @property
    def lr(self) -> float:
        return float(self.spec["optimizer"]["lr"])

    @property
    def seed(self) -> int:
        return int(self.spec["seed"])

    @property
    def method(self) -> str:
        return str(self.spec["method"])

    def to_json(self) -> dict[str, Any]:
        """Return the result as it is kept. ``from_json`` reads it back."""
        return {**asdict(self), "final_loss": self.loss}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "RunResult":
        """Read ``to_json``. Raises KeyError, TypeError or AttributeError for anything else."""
        keys = {key: value for key, value in document.items() if key != "final_loss"}
        curve = tuple(Point(**point) for point in keys.pop("curve"))
        return cls(**{**keys, "curve": curve, "digests": tuple(keys["digests"])})


def this_machine() -> str:
    """Return processor and system, as far as they are known."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return f"{names[0] if names else platform.machine()}, {platform.system()}, Python {platform.python_version()}"


@dataclass(frozen=True, slots=True)
class ResultStore:
    """The results under one folder. What is there is not run again."""

    folder: Path

    def path(self, name: str) -> Path:
        return self.folder / "runs" / f"{name}.json"

    def load(self, spec: RunSpec) -> RunResult | None:
        """Return the result of ``spec``, if it has been run. Raises RunError for a file that cannot be read."""
        path = self.path(spec.name)
        with disk_errors(f"{path} cannot be read", "check its permissions"):
            if not path.exists():
                return None
            text = path.read_text("utf-8")
        try:
            return RunResult.from_json(json.loads(text))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise RunError(f"{path} is not the result of a run ({error}); remove it, and it is run again.") from error

    def save(self, result: RunResult) -> Path:
        """Keep a result. Raises RunError."""
        return write_json(self.path(result.name), result.to_json())


def write_json(path: Path, document: Mapping[str, Any]) -> Path:
    """Write ``document`` to ``path`` in one step. Raises RunError."""
    return write_text(path, json.dumps(document, indent=1, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> Path:
    """Write ``text`` to ``path`` in one step: a reader finds the old file or the new one. Raises RunError."""
    with disk_errors(f"{path} cannot be written", "name another folder"):
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, path.with_name(f"{path.name}.{os.getpid()}.part"), text.encode())
    return path

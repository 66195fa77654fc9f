"""Where a command's events go: the screen, plain lines, or JSON lines."""

import contextlib
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from enum import Enum, auto
from pathlib import Path
from typing import IO

from tsr_swarm.cli.options import UsageError
from tsr_swarm.errors import RunError
from tsr_swarm.telemetry.events import Event, Warned, decode_stamped, encode
from tsr_swarm.telemetry.log import Sink
from tsr_swarm.telemetry.plain import describe
from tsr_swarm.telemetry.recording import recording
from tsr_swarm.telemetry.text import reason_text

Emit = Callable[[Event], None]


class Mode(Enum):
    """How a command shows what happens."""

    SCREEN = auto()
    PLAIN = auto()
    JSON = auto()


def choose_mode(
    *,
    plain: bool,
    json: bool,
    stream: IO[str] | None = None,
    keyboard: IO[str] | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Mode:
    """The screen on a terminal with a keyboard, plain lines anywhere else, unless a flag says which.

    ``stream`` and ``keyboard``: None for this process's own.
    """
    if plain and json:
        raise UsageError("--plain and --json exclude each other; give one of them.")
    if json:
        return Mode.JSON
    is_terminal = (stream or sys.stdout).isatty() and (keyboard or sys.stdin).isatty()
    can_show = is_terminal and environ.get("TERM", "dumb") != "dumb" and not environ.get("CI")
    return Mode.SCREEN if can_show and not plain else Mode.PLAIN


def set_up_logging(mode: Mode) -> None:
    """Send logs to stderr: with JSON lines all of ours, else only warnings, one line each."""
    handler = logging.StreamHandler()
    handler.setFormatter(_OneLine() if mode is Mode.PLAIN else logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("tsr_swarm").setLevel(logging.INFO if mode is Mode.JSON else logging.WARNING)
    logging.captureWarnings(True)
    logging.getLogger("py.warnings").setLevel(logging.ERROR)  # warnings of Python are for developers, who have -W


class _OneLine(logging.Formatter):
    """One line a record, without a traceback."""

    def format(self, record: logging.LogRecord) -> str:
        return f"{record.levelname.lower()}: {' '.join(record.getMessage().split())}"


@contextlib.contextmanager
def emitter(mode: Mode, record: Path | None = None) -> Iterator[Emit]:
    """Print and record events. A recording that fails is given up with a warning; the run goes on."""
    with contextlib.ExitStack() as exits:
        keep = exits.enter_context(_opened(record)) if record else None

        def emit(event: Event) -> None:
            nonlocal keep
            now = time.time()
            line = encode(event, now)
            if keep is not None:
                try:
                    keep(line)
                except OSError as error:
                    keep = None
                    failure = f"{record} cannot be written ({reason_text(error)})"
                    emit(Warned(message=f"{failure}; the run goes on without it."))
            _print(mode, event, now, line)

        yield emit


def print_aside(sentence: str) -> None:
    """Print to stderr a sentence for the user that is no part of the command's output."""
    print(sentence, file=sys.stderr, flush=True)


def print_line(mode: Mode, line: str) -> None:
    """Print an event line from elsewhere as it is, or as a plain line with the time it was stamped."""
    stamped = decode_stamped(line)
    if stamped is not None:
        _print(mode, stamped.event, stamped.time, line.rstrip("\n"))


def _print(mode: Mode, event: Event, when: float, line: str) -> None:
    """Print an event as its line, or with the local time of day; plain output leaves some events out."""
    text = describe(event)
    if mode is Mode.JSON:
        print(line, flush=True)
    elif text is not None:
        print(f"{time.strftime('%H:%M:%S', time.localtime(when))}  {text}", flush=True)


def gap_line(mode: Mode, count: int) -> str:
    """The line on stdout in place of ``count`` dropped lines: an event among JSON lines."""
    one, many = "1 line was dropped: nobody read it.", f"{count} lines were dropped: nobody read them."
    sentence = one if count == 1 else many
    return encode(Warned(message=sentence), time.time()) if mode is Mode.JSON else sentence


def _opened(path: Path) -> contextlib.AbstractContextManager[Sink]:
    try:
        return recording(path)
    except OSError as error:
        raise RunError(f"{path} cannot be written ({reason_text(error)}); name another file with --record.") from error

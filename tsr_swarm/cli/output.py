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
from tsr_swarm.telemetry.events import Event, decode_stamped, encode
from tsr_swarm.telemetry.log import Sink, recording, text_sink
from tsr_swarm.telemetry.plain import describe

Emit = Callable[[Event], None]


class Mode(Enum):
    """How a command shows what happens."""

    SCREEN = auto()
    PLAIN = auto()
    JSON = auto()


def choose_mode(
    *, plain: bool, json: bool, stream: IO[str] | None = None, environ: Mapping[str, str] = os.environ
) -> Mode:
    """The screen on a terminal that can show one, plain lines anywhere else, unless a flag says which."""
    if plain and json:
        raise UsageError("--plain and --json exclude each other; give one of them.")
    if json:
        return Mode.JSON
    can_show = (stream or sys.stdout).isatty() and environ.get("TERM", "dumb") != "dumb" and not environ.get("CI")
    return Mode.SCREEN if can_show and not plain else Mode.PLAIN


def set_up_logging(mode: Mode) -> None:
    """Logs go to stderr: all of ours beside JSON lines, else only what somebody should know, one line each."""
    handler = logging.StreamHandler()
    handler.setFormatter(_OneLine() if mode is Mode.PLAIN else logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("tsr_swarm").setLevel(logging.INFO if mode is Mode.JSON else logging.WARNING)
    logging.captureWarnings(True)
    logging.getLogger("py.warnings").setLevel(logging.ERROR)  # for developers; they have -W


class _OneLine(logging.Formatter):
    """No traceback reaches a user."""

    def format(self, record: logging.LogRecord) -> str:
        return f"{record.levelname.lower()}: {' '.join(record.getMessage().split())}"


@contextlib.contextmanager
def emitter(mode: Mode, record: Path | None = None, *, on_closed: Callable[[], None]) -> Iterator[Emit]:
    """Print and record events. ``on_closed`` is called once if stdout goes away: a closed pipe or terminal."""
    with contextlib.ExitStack() as exits:
        printer = _until_closed(text_sink(sys.stdout), on_closed)
        keep = exits.enter_context(_recording(record)) if record else None

        def emit(event: Event) -> None:
            line = encode(event, time.time())
            if keep is not None:
                keep(line)
            text = line if mode is Mode.JSON else plain_line(event, time.time())
            if text is not None:
                printer(text)

        yield emit


def line_printer(mode: Mode, on_closed: Callable[[], None]) -> Callable[[str], None]:
    """Print event lines from elsewhere as they are, or as plain lines with the time they were stamped."""
    printer = _until_closed(text_sink(sys.stdout), on_closed)

    def see(line: str) -> None:
        stamped = decode_stamped(line)
        if stamped is None:
            return
        text = line.rstrip("\n") if mode is Mode.JSON else plain_line(stamped.event, stamped.time)
        if text is not None:
            printer(text)

    return see


def plain_line(event: Event, when: float) -> str | None:
    """``event`` as a plain line with the local time of day; None when it is not worth one."""
    text = describe(event)
    return text and f"{time.strftime('%H:%M:%S', time.localtime(when))}  {text}"


@contextlib.contextmanager
def _recording(path: Path) -> Iterator[Sink]:
    try:
        with recording(path) as sink:
            yield sink
    except OSError as error:
        raise RunError(f"{path} cannot be written ({error.strerror}); name another file with --record.") from error


def _until_closed(sink: Sink, on_closed: Callable[[], None]) -> Sink:
    is_open = True

    def write(line: str) -> None:
        nonlocal is_open
        if is_open:
            try:
                sink(line)
            except OSError:
                is_open = False
                drop_stdout()
                on_closed()

    return write


def drop_stdout() -> None:
    """Let what is still to be flushed to a closed stdout vanish, or Python complains at its exit."""
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)

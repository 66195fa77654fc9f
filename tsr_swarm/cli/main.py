"""The command line. Every failure is one line on stderr and a documented exit code; no traceback reaches a user.

Only the module of the command that runs is imported, and torch, which takes seconds, only where it is needed.
"""

import contextlib
import errno
import importlib
import io
import os
import sys
import tempfile
import traceback
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from tsr_swarm import __version__
from tsr_swarm.errors import RunError, SwarmError
from tsr_swarm.process.machine_limits import is_about_memory
from tsr_swarm.process.shutdown import INTERRUPTED, SENTENCE_PREFIX, tie_to_parent
from tsr_swarm.telemetry.text import reason_text

PROGRAM = "tsr-swarm"
COMMANDS = {  # each is the function of its name in the module of its name
    "init": "Write a run file to start from, with every key and its default.",
    "plan": "Say what a run would send and keep on a home line, beside other methods, and propose settings for it.",
    "local": "Train with a whole swarm on this machine: a coordinator and N peers, each its own process.",
    "coordinate": "Lead a run. Serves its manifest and state, opens rounds and averages what peers send.",
    "join": "Join a run and train with it. Options can also come from TSR_SWARM_DEVICE=cpu and the like, or a profile.",
    "monitor": "Watch a run. Closing the monitor changes nothing for it.",
    "runs": "List the runs in a DHT: name, run id, peers, size, round, age.",
    "status": "Say how a run is doing, and stop.",
    "sample": "Let a run's model write. It is read from the newest checkpoint.",
    "replay": "Show a recorded run again.",
    "simulate": "Compare methods by loss against bytes and time, in simulated swarms.",
}
FAILED, USAGE = 1, 2
# ClickException, wherever this version of typer keeps it
_CommandLineError: type[Exception] = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")

_REMEDIES = {
    errno.ENOSPC: "make room there",
    errno.EDQUOT: "make room there",
    errno.EFBIG: "raise the limit of a file's size (ulimit -f)",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "close other programs",
    errno.ENOMEM: "close other programs, or use a smaller model",
    errno.EAGAIN: "raise the limit of processes (ulimit -u), or close other programs",
    errno.EACCES: "check its permissions, or choose another place",
    errno.EPERM: "check its permissions, or choose another place",
    errno.EROFS: "choose a place that can be written to",
    errno.ENAMETOOLONG: "choose a shorter path",
    errno.ELOOP: "correct the links that lead there",
    errno.EIO: "check the disk",
}


def command_line(*loaded: str) -> Any:
    """The click command of the whole program. Of the commands that are not ``loaded`` only the help is there."""
    app = typer.Typer(
        name=PROGRAM,
        help="Train a language model together over ordinary home internet.",
        epilog="Exit codes: 0 done, 1 failed, 2 usage, 69 coordinator unreachable, 76 refused, 78 bad configuration, "
        "130 interrupted.",
        add_completion=False,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_root)
    for name, text in COMMANDS.items():
        function = getattr(importlib.import_module(f"tsr_swarm.cli.{name}"), name) if name in loaded else _not_loaded
        app.command(name, help=text)(function)
    return typer.main.get_command(app)


def _not_loaded() -> None:
    raise AssertionError("only commands that are loaded can run")


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"{PROGRAM} {__version__}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    try:
        os.getcwd()
    except FileNotFoundError:
        raise RunError("The folder that this command runs in is gone; change to one that exists.") from None


def main() -> None:
    """Entry point of the ``tsr-swarm`` command."""
    tie_to_parent()
    _open_standard_streams()
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # its own lines would come before our sentence
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code. Says on stderr, in one line, why it is not 0."""
    try:
        command = next((word for word in arguments if not word.startswith("-")), "")
        code = command_line(command).main([*arguments], PROGRAM, standalone_mode=False, obj=[*arguments])
        sys.stdout.flush()  # now, because at its exit the interpreter would report a full disk in its own words
        return int(code or 0)
    except (Exception, KeyboardInterrupt) as error:
        return _explain(_cause(error), arguments)


def _cause(error: BaseException) -> BaseException:
    """The first error of a group of tasks, whose own message means nothing to a user."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _explain(error: BaseException, arguments: Sequence[str]) -> int:
    """Say why the command failed, unless that is known, and give the exit code."""
    match error:
        case _CommandLineError():
            return _usage(error, arguments)
        case SwarmError():
            _say(str(error))
            return error.exit_code
        case KeyboardInterrupt() | typer.Abort():
            return INTERRUPTED
        case BrokenPipeError():
            _drop_stdout()
        case _:
            _say(sentence_of(error) or f"Unexpected {type(error).__name__}: {error}; {_keep_details(error)}.")
    return FAILED


def _usage(error: Exception, arguments: Sequence[str]) -> int:
    """No arguments at all show the help; anything else is one sentence."""
    if type(error).__name__ == "NoArgsIsHelpError":
        _print(str(error))
    else:
        message = str(getattr(error, "format_message", error.__str__)()).rstrip(".")
        context = getattr(error, "ctx", None)  # None: an option lacks its value, which the parser says by itself
        command = context.command_path if context else f"{PROGRAM} {arguments[0]}"
        _say(f"{message}; see '{command} --help'.")
    return USAGE


def _say(sentence: str) -> None:
    _print(f"{SENTENCE_PREFIX}{' '.join(sentence.split())}")


def _print(text: str) -> None:
    with contextlib.suppress(OSError):  # a full stderr; the exit code remains
        print(text, file=sys.stderr, flush=True)


def _keep_details(error: BaseException) -> str:
    try:
        with tempfile.NamedTemporaryFile("w", prefix=f"{PROGRAM}-error-", suffix=".log", delete=False) as file:
            traceback.print_exception(error, file=file)
    except OSError as problem:
        return f"its details cannot be kept ({reason_text(problem)}); set TMPDIR to a folder that can be written to"
    return f"the details are in {file.name}, please report them"


def sentence_of(error: BaseException) -> str | None:
    """What happened and what to do about it; None for an error that only a fault of the program can explain."""
    if isinstance(error, OSError) and error.errno is not None:
        what = "Writing or reading failed" if error.filename is None else f"{error.filename} cannot be used"
        remedy = _REMEDIES.get(error.errno, "check that place")
        return f"{what} ({reason_text(error)}); {remedy}, then try again."
    if is_about_memory(error):
        return "This machine has too little memory for that; close other programs, or use a smaller model or batch."
    if isinstance(error, ImportError) and not str(error.name).startswith("tsr_swarm"):
        reason = str(error).strip().splitlines()[-1]
        return f"A library cannot be loaded ({reason}); install tsr-swarm anew."
    if isinstance(error, UnicodeError):
        return f"A name or text that was given is not UTF-8 ({error}); rename or convert it."
    return None


def _open_standard_streams() -> None:
    """Open those that are closed on /dev/null, and have stdout escape what its encoding does not have.

    Else the next file that is opened gets the number of a closed one, and what is printed lands in it.
    """
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        if getattr(sys, name) is None:
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number)
                os.close(null)
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8"))
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _drop_stdout() -> None:
    """Redirect a closed stdout to /dev/null, or Python complains at its exit that it cannot flush."""
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)

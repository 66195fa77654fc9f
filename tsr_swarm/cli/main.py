"""The command line. Every failure is one line on stderr and a documented exit code; no traceback reaches a user.

Commands are small and import what they need when they run: torch takes seconds, and ``--help`` should not.
"""

import contextlib
import os
import sys
import tempfile
import traceback
from collections.abc import Sequence
from typing import Annotated

import typer

from tsr_swarm import __version__
from tsr_swarm.cli.coordinate import coordinate
from tsr_swarm.cli.faults import sentence_of
from tsr_swarm.cli.init import init
from tsr_swarm.cli.join import join
from tsr_swarm.cli.local import local
from tsr_swarm.cli.monitor import monitor
from tsr_swarm.cli.plan import plan
from tsr_swarm.cli.replay import replay
from tsr_swarm.cli.sample import sample
from tsr_swarm.cli.simulate import simulate
from tsr_swarm.cli.standard_streams import drop_stdout, open_standard_streams
from tsr_swarm.cli.status import status
from tsr_swarm.errors import RunError, SwarmError
from tsr_swarm.process.shutdown import INTERRUPTED, tie_to_parent
from tsr_swarm.process.supervisor import SENTENCE_PREFIX

PROGRAM = "tsr-swarm"
FAILED, USAGE = 1, 2
# ClickException, wherever this version of typer keeps it
_CommandLineError: type[Exception] = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")

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


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"{PROGRAM} {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    _require_folder()


def _require_folder() -> None:
    """Libraries end the process where there is none."""
    try:
        os.getcwd()
    except FileNotFoundError:
        raise RunError("The folder that this command runs in is gone; change to one that exists.") from None


for command in (init, plan, local, coordinate, join, monitor, status, sample, replay, simulate):
    app.command()(command)


def main() -> None:
    """Entry point of the ``tsr-swarm`` command."""
    tie_to_parent()
    open_standard_streams()
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # its own lines would come before our sentence
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code. Says on stderr, in one line, why it is not 0."""
    try:
        code = typer.main.get_command(app).main([*arguments], PROGRAM, standalone_mode=False, obj=[*arguments])
        sys.stdout.flush()  # here, and not as the interpreter ends, where a full disk would be told in its words
        return int(code or 0)
    except (Exception, KeyboardInterrupt) as error:
        return _explain(_cause(error), arguments)


def _cause(error: BaseException) -> BaseException:
    """What a group of tasks failed of first, whose own words say nothing to a user."""
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
            drop_stdout()
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
    with contextlib.suppress(OSError):  # of a full stderr: the exit code says it
        print(text, file=sys.stderr, flush=True)


def _keep_details(error: BaseException) -> str:
    try:
        with tempfile.NamedTemporaryFile("w", prefix=f"{PROGRAM}-error-", suffix=".log", delete=False) as file:
            traceback.print_exception(error, file=file)
    except OSError as problem:
        return f"its details cannot be kept ({problem.strerror}); set TMPDIR to a folder that can be written to"
    return f"the details are in {file.name}, please report them"

"""The command line. Every failure is one line on stderr and a documented exit code; no traceback reaches a user.

Commands are small and import what they need when they run: torch takes seconds, and ``--help`` should not.
"""

import sys
import tempfile
import traceback
from collections.abc import Sequence
from typing import Annotated

import typer

from tsr_swarm import __version__
from tsr_swarm.cli.coordinate import coordinate
from tsr_swarm.cli.init import init
from tsr_swarm.cli.join import join
from tsr_swarm.cli.local import local
from tsr_swarm.cli.monitor import monitor
from tsr_swarm.cli.plan import plan
from tsr_swarm.cli.replay import replay
from tsr_swarm.cli.sample import sample
from tsr_swarm.cli.simulate import simulate
from tsr_swarm.cli.status import status
from tsr_swarm.errors import SwarmError
from tsr_swarm.runtime.children import SENTENCE_PREFIX
from tsr_swarm.runtime.lifeline import INTERRUPTED, tie_to_parent

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
    pass


for command in (init, plan, local, coordinate, join, monitor, status, sample, replay, simulate):
    app.command()(command)


def main() -> None:
    """Entry point of the ``tsr-swarm`` command."""
    tie_to_parent()
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code. Says on stderr, in one line, why it is not 0."""
    try:
        return int(
            typer.main.get_command(app).main([*arguments], PROGRAM, standalone_mode=False, obj=[*arguments]) or 0
        )
    except _CommandLineError as error:
        return _usage(error)
    except SwarmError as error:
        _say(str(error))
        return error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except BrokenPipeError:
        return FAILED
    except Exception as error:
        _say(f"Unexpected {type(error).__name__}: {error}; the details are in {_keep_details()}, please report them.")
        return FAILED


def _usage(error: Exception) -> int:
    """No arguments at all show the help; anything else is one sentence."""
    if type(error).__name__ == "NoArgsIsHelpError":
        print(error, file=sys.stderr)
    else:
        message = str(getattr(error, "format_message", error.__str__)()).rstrip(".")
        _say(f"{message}; see '{PROGRAM} --help'.")
    return USAGE


def _say(sentence: str) -> None:
    print(f"{SENTENCE_PREFIX}{' '.join(sentence.split())}", file=sys.stderr)


def _keep_details() -> str:
    with tempfile.NamedTemporaryFile("w", prefix=f"{PROGRAM}-error-", suffix=".log", delete=False) as file:
        traceback.print_exc(file=file)
    return file.name

"""``tsr-swarm init``: write a run file to start from."""

from pathlib import Path
from typing import Annotated

import typer

from tsr_swarm.cli.options import Preset, UsageError, preset_override
from tsr_swarm.config.load import configure
from tsr_swarm.config.render import header, render
from tsr_swarm.errors import ConfigError
from tsr_swarm.telemetry.text import reason_text


def init(
    path: Annotated[Path, typer.Argument(help="The file to write.")] = Path("run.toml"), preset: Preset = None
) -> None:
    text = render(configure({}, preset_override(preset), environ={}), header(preset))
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise UsageError(f"{path} exists already and is kept; name another file.") from None
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be written ({reason_text(error)}); name a file in a folder you own."
        ) from error
    print(f"Wrote {path}. Start the run with: tsr-swarm coordinate {path}")

"""Commands that the README and peers/ tell people and machines to run are ones that exist and understand them."""

import json
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from tsr_swarm.cli import main
from tsr_swarm.cli.profile import read_profile
from tsr_swarm.node.join_options import JoinOptions

ROOT = Path(__file__).parents[1]
PEERS = ROOT / "peers"
ROLES = sorted(path.name for path in PEERS.iterdir() if path.is_dir())
COMMANDS: dict[str, Any] = main.command_line(*main.COMMANDS).commands
HOW_TO_SHOW_IT = {"plain", "json", "resume"}  # not true of a machine, so not in its peer.toml


def readme_commands() -> list[str]:
    """Command lines in the README: lines of its bash blocks, and code within a sentence that begins like one."""
    text = (ROOT / "README.md").read_text()
    blocks = "".join(re.findall(r"^```bash\n(.*?)^```", text, re.MULTILINE | re.DOTALL))
    inline = re.findall(r"`((?:tsr-swarm|python -m|bash) [^`]+)`", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))
    return [*filter(None, blocks.splitlines()), *(" ".join(line.split()) for line in inline)]


def table_of(role: str) -> tuple[str, dict[str, Any]]:
    """The command a role runs and its settings."""
    [(command, table)] = tomllib.loads((PEERS / role / "peer.toml").read_text()).items()
    return command, table


def unit_command(role: str) -> list[str]:
    lines = (PEERS / role / f"{role}.service").read_text().splitlines()
    [command] = [line.removeprefix("ExecStart=") for line in lines if line.startswith("ExecStart=")]
    return shlex.split(command)


def container_command(role: str) -> list[str]:
    lines = (PEERS / role / "Containerfile").read_text().splitlines()
    parts = {name: rest for name, _, rest in (line.partition(" ") for line in lines)}
    return [*json.loads(parts["ENTRYPOINT"]), *json.loads(parts["CMD"])]


def given_options(command_line: list[str]) -> tuple[str, dict[str, Any]]:
    """The command that a command line names, and the options it gives, by long name. Fails as the program would."""
    program, name, *arguments = command_line
    assert Path(program).name == "tsr-swarm"
    command = COMMANDS[name]
    context = command.make_context(name, arguments)
    sources = {p.name: context.get_parameter_source(p.name).name for p in command.params}
    return name, {
        option_name(parameter): context.params[parameter.name]
        for parameter in command.params
        if parameter.param_type_name == "option" and sources[parameter.name] == "COMMANDLINE"
    }


def option_name(parameter: Any) -> str:
    [long] = [option for option in parameter.opts if option.startswith("--")]
    return str(long).removeprefix("--").replace("-", "_")


@pytest.mark.parametrize("line", readme_commands())
def test_a_command_line_of_the_readme_parses_and_the_files_it_names_exist(line: str) -> None:
    program, *arguments = words = shlex.split(line, comments=True)
    match program:
        case "tsr-swarm":
            given_options(words)
        case "python":
            assert arguments[0] == "-m"
            path = ROOT.joinpath(*arguments[1].split("."))
            source = path.with_suffix(".py") if path.with_suffix(".py").exists() else path / "__main__.py"
            if "argparse" in source.read_text():  # else it takes file names, which are looked at below
                subprocess.run([sys.executable, *arguments, "--help"], cwd=ROOT, check=True, capture_output=True)
        case "bash":
            assert (ROOT / arguments[0]).is_file()
        case _:
            pytest.fail(f"no test knows what {program} understands")
    assert [word for word in arguments if "/" in word and not (ROOT / word).exists()] == []


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("command_line", [unit_command, container_command])
def test_the_command_line_of_a_role_parses_and_says_what_its_profile_says(role: str, command_line: Any) -> None:
    command, table = table_of(role)
    name, options = given_options(command_line(role))
    assert name == command
    if name == "join":
        assert options.pop("profile") == Path("/etc/tsr-swarm/peer.toml")
        table = {}
    assert {key: value for key, value in options.items() if key not in HOW_TO_SHOW_IT} == table


@pytest.mark.parametrize("role", ROLES)
def test_the_keys_of_a_profile_are_options_of_its_command(role: str) -> None:
    command, table = table_of(role)
    assert set(table) <= {
        option_name(parameter) for parameter in COMMANDS[command].params if parameter.opts[0][0] == "-"
    }
    if command == "join":
        assert JoinOptions(**read_profile(PEERS / role / "peer.toml")).coordinator


def test_the_readme_lists_every_role_and_no_other() -> None:
    rows = re.findall(
        r"^\| \[([a-z-]+)\]\(([a-z-]+)/\) \|.*\| `(.+)` \|$", (PEERS / "README.md").read_text(), re.MULTILINE
    )
    assert sorted(name for name, _, _ in rows) == ROLES
    for name, folder, command_line in rows:
        assert folder == name
        assert given_options(shlex.split(command_line.replace("HOST", "swarm.example.org")))[0] == table_of(name)[0]


@pytest.mark.parametrize("role", ROLES)
def test_a_role_is_four_files_and_no_code(role: str) -> None:
    names = {path.name for path in (PEERS / role).iterdir()}
    assert names == {"peer.toml", f"{role}.service", "Containerfile", "README.md"}
    assert len((PEERS / role / "README.md").read_text().splitlines()) == 3
    assert f"peers/{role}/" in (PEERS / role / "Containerfile").read_text()
    assert f"tsr-swarm-{role}.service" in (PEERS / role / f"{role}.service").read_text()


@pytest.mark.parametrize("page", sorted((ROOT / "examples" / "results").glob("*.md")), ids=lambda page: page.stem)
def test_a_page_of_results_names_a_command_that_works_in_any_clone(page: Path) -> None:
    commands = re.findall(r"Command: `([^`]*)`", page.read_text())
    assert commands
    assert all(re.match(r"(?:python -m tests\.\S+|tsr-swarm \w+)(?: |$)", command) for command in commands)
    assert not any(f" /{folder}/" in page.read_text() for folder in ("home", "root", "tmp", "work"))

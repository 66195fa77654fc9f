"""A peer's settings: flags over environment over profile over defaults."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tsr_swarm.cli.profile import merge_profile
from tsr_swarm.errors import ConfigError
from tsr_swarm.node.join_options import JoinOptions

TEXT_KEYS = ("coordinator", "device", "dir")
LAYER = st.dictionaries(st.sampled_from(TEXT_KEYS), st.text("abc123", min_size=1))


def profile(folder: Path, text: str) -> Path:
    path = folder / "peer.toml"
    path.write_text(text)
    return path


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(flags=LAYER, environ=LAYER, file=LAYER)
def test_each_setting_comes_from_the_first_that_has_it(
    flags: dict[str, str], environ: dict[str, str], file: dict[str, str], tmp_path: Path
) -> None:
    path = profile(tmp_path, "[join]\n" + "".join(f'{key} = "{value}"\n' for key, value in file.items()))
    variables = {f"TSR_SWARM_{key.upper()}": value for key, value in environ.items()}
    merged = merge_profile({key: flags.get(key) for key in TEXT_KEYS}, variables, path)
    for key in TEXT_KEYS:
        default = getattr(JoinOptions(), key)
        expected = flags.get(key) or environ.get(key) or file.get(key) or default
        assert getattr(merged, key) == expected


def test_every_kind_of_value_is_read_from_a_profile(tmp_path: Path) -> None:
    path = profile(tmp_path, '[join]\ndata = ["a", "b"]\nno_dht = true\nlisten = "h:1"\ndht_port = 5\nname = "ann"\n')
    merged = merge_profile({}, {}, path)
    assert (merged.data, merged.no_dht, merged.listen, merged.dht_port) == (("a", "b"), True, "h:1", 5)
    assert (merged.name, merged.insecure) == ("ann", False)
    merged = merge_profile({}, {}, profile(tmp_path, '[join]\ndata = "texts"\nrun = "chat@3f"\ndht = "h:1"\n'))
    assert (merged.data, merged.run, merged.dht) == (("texts",), "chat@3f", ("h:1",))


def test_every_kind_of_value_is_read_from_the_environment() -> None:
    environ = {"DATA": "a:b", "INSECURE": "1", "DHT": "h:1,h:2", "LISTEN": "h:1", "DHT_PORT": "7703", "RESUME": ""}
    merged = merge_profile({}, {"HOME": "/"} | {f"TSR_SWARM_{key}": text for key, text in environ.items()}, None)
    assert (merged.data, merged.insecure, merged.dht, merged.resume) == (("a", "b"), True, ("h:1", "h:2"), False)
    assert (merged.listen, merged.dht_port) == ("h:1", 7703)


@pytest.mark.parametrize(("text", "seconds"), [("90", 90.0), ("0.5", 0.5), ('"2min"', 120.0), ('"0"', 0.0)])
def test_a_wait_is_a_number_of_seconds_or_a_time_with_its_unit(text: str, seconds: float, tmp_path: Path) -> None:
    assert merge_profile({}, {}, profile(tmp_path, f"[join]\nwait = {text}\n")).wait == seconds
    assert merge_profile({}, {"TSR_SWARM_WAIT": text.strip('"')}, None).wait == seconds


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[join]\ndevise = 'cpu'\n", "did you mean 'join.device'"),
        ("[join]\noutbound_only = 1\n", "true or false"),
        ("[join]\ndevice = 1\n", "text"),
        ("[join]\ndht_port = '1'\n", "a whole number"),
        ("[join]\ndht_port = true\n", "a whole number"),
        ("[join]\ndata = [1]\n", "join.data = 1 has the wrong type"),
        ("[join]\nwait = 'soon'\n", "join.wait: 'soon' is not a time"),
        ("[join]\nwait = true\n", "join.wait = True"),
        ("[join]\nwait = -1\n", "join.wait = -1.0 is out of range"),
        ("[join]\nwait = nan\n", "join.wait = nan is out of range"),
        ("join = 1\n", r"\[join\] table"),
        ("device = 'cpu'\n", r"\[join\] table"),
        ("[join\n", "not valid TOML"),
    ],
)
def test_a_profile_that_cannot_be_meant_is_refused(text: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=says):
        merge_profile({}, {}, profile(tmp_path, text))


@pytest.mark.parametrize(
    ("values", "environ", "says"),
    [
        ({"local_space": "half"}, {}, "core"),
        ({"name": "a b"}, {}, "letters"),
        ({"name": "x" * 33}, {}, "1 to 32"),
        ({"listen": "h:1", "outbound_only": True}, {}, "exclude each other"),
        ({"announce": "h"}, {}, "for a peer that listens"),
        ({"dht_port": 7703}, {}, "for a peer that listens"),
        ({"listen": "h:1", "dht_port": 70000}, {}, "0 to 65535"),
        ({"run": "a b"}, {}, "'a b' is not a run"),
        ({"dht": ("h:1", "nowhere")}, {}, "multiaddrs that end in /p2p/ID, or HOST:PORT"),
        ({}, {"TSR_SWARM_NO_DHT": "perhaps"}, "TSR_SWARM_NO_DHT = 'perhaps'"),
        ({}, {"TSR_SWARM_DHT_PORT": "any"}, "TSR_SWARM_DHT_PORT = 'any'"),
    ],
)
def test_values_that_no_peer_can_have_are_refused(values: dict[str, Any], environ: dict[str, str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        merge_profile(values, environ, None)

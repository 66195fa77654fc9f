"""Show a configuration: as a ``run.toml`` with the comments of ``config/run.py``, or by what differs from another."""

import ast
import inspect
import io
import json
import tokenize
from dataclasses import fields
from functools import cache
from typing import Any

from tsr_swarm.config import run
from tsr_swarm.config.coerce import shown
from tsr_swarm.config.run import RunConfig

_HEADER = """\
# A run of tsr-swarm. Every key is here with its {value}; a key that is left out has its default.
# Any of them can be set for one start: --set optimizer.lr=0.001, or TSR_SWARM_OPTIMIZER__LR=0.001.
"""

_MOST = 5  # differences that are named; more are counted


def header(preset: str | None = None) -> str:
    """What a run file begins with whose keys have their defaults, or the values of a preset."""
    return _HEADER.format(value=f"value in the preset '{preset}'" if preset else "default")


def render(config: RunConfig, head: str = "") -> str:
    """The whole of ``config`` as TOML. Reading it back gives an equal configuration."""
    parts = [head] if head else []
    parts += [_section(f.name, getattr(config, f.name)) for f in fields(config)]
    return "\n".join(parts)


def differences(begun: RunConfig, given: RunConfig) -> str:
    """``optimizer.lr = 0.01 (now 0.5), run.seed = 0 (now 1)``: the keys whose values differ; "" when none does."""
    found = [
        f"{section.name}.{key.name} = {shown(before)} (now {shown(now)})"
        for section in fields(begun)
        for key in fields(getattr(begun, section.name))
        if (before := getattr(getattr(begun, section.name), key.name))
        != (now := getattr(getattr(given, section.name), key.name))
    ]
    more = [f"and {len(found) - _MOST} more"] if len(found) > _MOST else []
    return ", ".join(found[:_MOST] + more)


def _section(name: str, section: Any) -> str:
    comments = _comments(type(section).__name__)
    about = [f"# {line}".rstrip() for line in inspect.cleandoc(type(section).__doc__ or "").splitlines()]
    keys = [f"{f.name} = {_toml(getattr(section, f.name))}{comments.get(f.name, '')}" for f in fields(section)]
    return "\n".join([*about, f"[{name}]", *keys, ""])


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        # A JSON string is a TOML string, but for DEL, which TOML wants escaped.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, tuple):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    return repr(value)


@cache
def _comments(section: str) -> dict[str, str]:
    """The comment at the end of each field's line in the source, as it ends a line of TOML."""
    source = inspect.getsource(run)
    by_line = {
        token.start[0]: f"  # {token.string.lstrip('# ')}"
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    return {
        node.target.id: by_line[node.lineno]
        for cls in ast.parse(source).body
        if isinstance(cls, ast.ClassDef) and cls.name == section
        for node in cls.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.lineno in by_line
    }

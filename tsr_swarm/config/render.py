"""Write a ``run.toml``: every key with its value and the comment it has in ``config/run.py``."""

import ast
import inspect
import io
import json
import tokenize
from dataclasses import fields
from functools import cache
from typing import Any

from tsr_swarm.config import run
from tsr_swarm.config.run import RunConfig

HEADER = """\
# A run of tsr-swarm. Every key is here with its default; a key that is left out keeps it.
# Any of them can be set for one start: --set optimizer.lr=0.001, or TSR_SWARM_OPTIMIZER__LR=0.001.
"""


def render(config: RunConfig, header: str = "") -> str:
    """The whole of ``config`` as TOML. Reading it back gives an equal configuration."""
    parts = [header] if header else []
    parts += [_section(f.name, getattr(config, f.name)) for f in fields(config)]
    return "\n".join(parts)


def _section(name: str, section: Any) -> str:
    comments = _comments(type(section).__name__)
    about = [f"# {line}".rstrip() for line in inspect.cleandoc(type(section).__doc__ or "").splitlines()]
    keys = [_line(f.name, getattr(section, f.name), comments.get(f.name, "")) for f in fields(section)]
    return "\n".join([*about, f"[{name}]", *keys, ""])


def _line(key: str, value: object, comment: str) -> str:
    return f"{key} = {_toml(value)}" + (f"  # {comment}" if comment else "")


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
    """The comment at the end of each field's line in the source."""
    source = inspect.getsource(run)
    by_line = {
        token.start[0]: token.string.lstrip("# ")
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

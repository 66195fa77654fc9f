"""A run's data is not sent to anybody: what organiser and volunteers are told where it is named by path."""

import os

from tsr_swarm.config.run import DataConfig
from tsr_swarm.discovery.addresses import is_loopback, split_address
from tsr_swarm.errors import ConfigError
from tsr_swarm.train.corpus import missing_paths, source_paths, source_text


def advise_organiser(data: DataConfig, listen: str) -> str | None:
    """What to tell whoever starts a run that listens at ``listen``; None where every peer finds its data."""
    paths = source_paths(data.source)
    if not paths:
        return None
    host, _ = split_address(listen)
    if not is_loopback(host):
        return (
            f"data.source = {source_text(paths)} is a path and no text is sent: volunteers need the same files at that "
            "path of their machines, or 'join --data PATH' with text of their own."
        )
    if all(os.path.isabs(os.path.expanduser(path)) for path in paths):
        return None
    return (
        f"data.source = {source_text(paths)} is relative: peers that are started in another folder need "
        "'join --data PATH', or an absolute data.source."
    )


def require_run_data(data: DataConfig) -> None:
    """Refuse a run whose data is not on this machine. Raises ConfigError that says whose path it is."""
    missing = missing_paths(data.source)
    if missing:
        raise ConfigError(
            f"This run trains on text that its organiser names by path, and there is no {missing[0]!r} here; "
            "add --data PATH to train on text of your own, or put the run's text at that path."
        )


def absolute_source(source: str | tuple[str, ...]) -> str | tuple[str, ...]:
    """``source`` as it is found from any folder of this machine."""
    paths = tuple(os.path.abspath(os.path.expanduser(path)) for path in source_paths(source))
    if not paths:
        return source
    return paths[0] if isinstance(source, str) else paths

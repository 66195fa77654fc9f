"""What a leader needs of a run's configuration beside the manifest, as it travels: see Rules in the proto."""

from dataclasses import replace

from tsr_swarm.config.run import RunConfig
from tsr_swarm.errors import ConfigError, PeerError
from tsr_swarm.wire.v1 import swarm_pb2 as pb


def rules_to_proto(config: RunConfig) -> pb.Rules:
    """The rules in ``config``."""
    return pb.Rules(
        rounds=config.run.rounds,
        min_peers=config.run.min_peers,
        quorum=config.round.quorum,
        floor_seconds=config.round.floor_seconds,
        ceiling_seconds=config.round.ceiling_seconds,
        budget_kb=config.round.budget_kb,
    )


def with_rules(config: RunConfig, rules: pb.Rules) -> RunConfig:
    """``config`` under ``rules``, each checked as if a user had typed it. Raises PeerError."""
    try:
        return replace(
            config,
            run=replace(config.run, rounds=rules.rounds, min_peers=rules.min_peers),
            round=replace(
                config.round,
                quorum=rules.quorum,
                floor_seconds=rules.floor_seconds,
                ceiling_seconds=rules.ceiling_seconds,
                budget_kb=rules.budget_kb,
            ),
        )
    except ConfigError as error:
        raise PeerError("rules", f"The run's rules are not legal ({error}); ask its organiser.") from error

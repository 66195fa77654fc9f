"""What a run came to, in a few lines. Pure."""

from tsr_swarm.telemetry.snapshot import SwarmSnapshot
from tsr_swarm.telemetry.text import bytes_text, factor_text, loss_text, plural


def summary(s: SwarmSnapshot) -> list[str]:
    """Rounds, losses, bytes by kind and direction against dense training, and the digest; nothing before a round."""
    if not s.rounds_counted:
        return []
    return [
        "",
        f"{plural(s.rounds_counted, 'round')}, held-out loss {loss_text(s.first_loss)} -> {loss_text(s.loss)} "
        "nats a token",
        "",
        *_table(s),
        "",
        f"Data-parallel training of the same steps would have moved {bytes_text(s.dense_bytes)}: "
        f"{factor_text(s.dense_bytes, s.wire_bytes)} as much.",
        f"Digest of the consensus weights: {s.digest}",
        *([f"The lines between the processes were shaped in a lab ({s.lab})."] if s.lab else []),
        "",
    ]


def _table(s: SwarmSnapshot) -> list[str]:
    kinds = list(dict.fromkeys([*s.sent, *s.received]))
    rows = [(kind, s.sent.get(kind, 0), s.received.get(kind, 0)) for kind in kinds]
    rows.append(("all", sum(s.sent.values()), sum(s.received.values())))
    head = f"{'wire bytes of all peers':<24}{'sent':>12}{'received':>12}"
    return [head, *[f"  {kind:<22}{bytes_text(sent):>12}{bytes_text(received):>12}" for kind, sent, received in rows]]

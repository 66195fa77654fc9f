"""What ``tsr-swarm local`` lets happen to its swarm. All are repeatable.

WHO is a peer's number or ``coordinator``; of kills and stops also ``leader`` or ``reducer``, whoever that is then.
"""

from typing import Annotated, Any

import typer

from tsr_swarm.local.network.local_network import MODES


def _many(metavar: str, text: str) -> Any:
    return typer.Option(metavar=metavar, help=f"{text} Repeatable.")


_Texts = list[str] | None

Kill = Annotated[_Texts, _many("WHO@ROUND[/PHASE]", "Kill peer WHO, or 'coordinator', 'leader', 'reducer'.")]
Back = Annotated[
    _Texts, _many("WHO@ROUND[/PHASE][:SECONDS]", "WHO, who was killed, comes back, or SECONDS after that.")
]
JoinAt = Annotated[list[int] | None, _many("ROUND", "A further peer joins in ROUND.")]
Env = Annotated[_Texts, _many("WHO:KEY=VALUE", "Set KEY for one process only.")]
Stop = Annotated[_Texts, _many("WHO@ROUND[/PHASE][:SECONDS]", "Freeze WHO for SECONDS (20s).")]
Slow = Annotated[_Texts, _many("WHO:FACTOR", "Training takes peer WHO FACTOR times as long.")]
Nat = Annotated[_Texts, _many("WHO", "Nothing reaches peer WHO that it did not ask for.")]
Up = Annotated[_Texts, _many("WHO:RATE", "What WHO, or 'all', can send: 2:20mbit.")]
Down = Annotated[_Texts, _many("WHO:RATE", "What WHO, or 'all', can receive.")]
Rtt = Annotated[_Texts, _many("WHO:TIME", "The share of WHO, or 'all', in every round trip: 2:80ms.")]
Loss = Annotated[_Texts, _many("WHO:PERCENT", "Packets that the line of WHO, or 'all', loses each way: 2:1%.")]
Partition = Annotated[
    _Texts, _many("WHO,...|WHO,...@ROUND[/PHASE][:SECONDS]", "Nothing passes between the sides for SECONDS (30s).")
]
Lab = Annotated[
    str | None,
    typer.Option(metavar="|".join(MODES), help="What shapes the lines; auto: namespaces where root may make them."),
]

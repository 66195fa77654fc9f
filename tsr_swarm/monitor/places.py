"""Where a run can be watched: the addresses that were given, and those of peers that can be dialled. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from tsr_swarm.telemetry.events import Event, PeerJoined, PeerLeft

MOST_HEARD = 64  # addresses of peers, the newest: enough to find one that lives


@dataclass(frozen=True, slots=True)
class Places:
    """``given`` holds one address or more; ``heard`` those of peers that joined and have not left, by peer."""

    given: tuple[str, ...]
    heard: Mapping[str, str] = field(default_factory=dict)

    @property
    def addresses(self) -> tuple[str, ...]:
        """Each once, the given ones first."""
        return tuple(dict.fromkeys((*self.given, *self.heard.values())))

    def hear(self, event: Event) -> "Places":
        """Take in who has joined and who has left."""
        match event:
            case PeerJoined() if event.address:
                others = {peer: address for peer, address in self.heard.items() if peer != event.peer}
                newest = [*others.items(), (event.peer, event.address)][-MOST_HEARD:]
                return replace(self, heard=dict(newest))
            case PeerJoined() | PeerLeft() if event.peer in self.heard:
                return replace(self, heard={peer: at for peer, at in self.heard.items() if peer != event.peer})
        return self

    def after(self, address: str) -> str:
        """Whom to ask when nobody answers at ``address``: the next in turn, or the first if that is known no more."""
        addresses = self.addresses
        place = addresses.index(address) + 1 if address in addresses else 0
        return addresses[place % len(addresses)]

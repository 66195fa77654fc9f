"""What polls are answered, as far as the answer is not the same for everybody: news to who lacks it, contacts once."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from tsr_swarm.config.run import RunConfig
from tsr_swarm.rounds import protocol as pt
from tsr_swarm.runtime.node import letters
from tsr_swarm.runtime.node.notes import Notes
from tsr_swarm.transport.base import Caller
from tsr_swarm.wire.rules import rules_to_proto
from tsr_swarm.wire.v1 import swarm_pb2 as pb

MOST_CALLERS = 10_000  # that are remembered

Contacts = Callable[[Caller, Iterable[str]], Mapping[str, str]]


@dataclass(frozen=True, slots=True)
class _Told:
    """What was answered to a caller last. That it has arrived is known when it polls as who knows this version."""

    life: int
    term: int
    version: int
    contacts: frozenset[tuple[str, str]]


class Answers:
    """One node's. Its event loop owns it."""

    def __init__(
        self,
        notes: Notes,
        config: Callable[[], RunConfig],
        contacts: Contacts,
    ) -> None:
        """config: with the rules that count now. contacts: where a caller can dial these nodes, by peer id."""
        self._notes, self._config, self._contacts = notes, config, contacts
        self._told: dict[str, _Told] = {}  # by caller, the one answered last at the end
        self._said: tuple[pt.News, RunConfig, pb.News] | None = None  # the newest, to anybody
        self._listed: frozenset[tuple[str, str]] = frozenset()  # likewise: most callers are told the same

    def reply(self, request: pb.PollRequest, message: pt.News | pt.Redirect, caller: Caller) -> pb.PollReply:
        """The answer to a poll that was checked, but for its lease and the coverage."""
        told = self._told.pop(request.peer_id, None)
        if isinstance(message, pt.Redirect):
            reply = pb.PollReply(redirect=letters.redirect_to_proto(message))
            listed = self._contacts(caller, [message.leader, *message.base.voters])
            reply.contacts.extend(letters.contacts_to_proto(listed.items()))
            return reply
        has_last = told is not None and (told.life, told.term, told.version) == (
            request.incarnation,
            message.term,
            request.known,
        )
        if told is not None and has_last and request.known == message.version:
            self._told[request.peer_id] = told
            return pb.PollReply(unchanged=letters.unchanged_to_proto(message))
        reply = pb.PollReply(news=self._news(message))
        reply.news.number = message.number
        listed = self._contacts(caller, _named(message))
        has = told.contacts if told is not None and has_last else frozenset()
        reply.contacts.extend(letters.contacts_to_proto(pair for pair in listed.items() if pair not in has))
        self._remember(request, message, frozenset(listed.items()))
        return reply

    def forget(self, peer_id: str) -> None:
        """This caller has gone."""
        self._told.pop(peer_id, None)

    def _news(self, message: pt.News) -> pb.News:
        """Built once: all but its number is the same for everybody."""
        said, config = replace(message, number=0), self._config()
        if self._said is None or self._said[:2] != (said, config):
            plan = None if said.plan is None else self._notes.plan(said.plan.round, said.plan.parent)
            news = letters.news_to_proto(said, plan)
            news.rules.CopyFrom(rules_to_proto(config))
            self._said = said, config, news
        return self._said[2]

    def _remember(self, request: pb.PollRequest, message: pt.News, listed: frozenset[tuple[str, str]]) -> None:
        self._listed = self._listed if listed == self._listed else listed  # kept once, however many were told
        self._told[request.peer_id] = _Told(request.incarnation, message.term, message.version, self._listed)
        if len(self._told) > MOST_CALLERS:
            del self._told[next(iter(self._told))]


def _named(message: pt.News) -> list[str]:
    """Nodes that who hears it may have to dial."""
    places = [] if message.plan is None else [place.node for place in message.plan.places]
    return [message.leader, *message.base.voters, *message.nodes, *message.sources, *places]

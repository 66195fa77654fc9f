"""What polls are answered, as far as the answer is not the same for everybody: news to who lacks it, contacts once.

Contacts that were told once count on at the caller: see Heard.
"""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from tsr_swarm.config.run import RunConfig
from tsr_swarm.node import message_codec
from tsr_swarm.node.round_cache import RoundCache
from tsr_swarm.rounds import protocol as pt
from tsr_swarm.transport.base import Caller
from tsr_swarm.wire.checks import MAX_CONTACTS
from tsr_swarm.wire.run_rules import rules_to_proto
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
    changes: int  # of addresses, until then


class PollReplies:
    """One node's. Its event loop owns it."""

    def __init__(
        self,
        round_cache: RoundCache,
        config: Callable[[], RunConfig],
        contacts: Contacts,
        changes: Callable[[], int],
    ) -> None:
        """config: with the rules that count now. contacts: where a caller can dial these nodes, by peer id.

        changes: of any node's address, so far.
        """
        self._round_cache, self._config, self._contacts, self._changes = round_cache, config, contacts, changes
        self._told: dict[str, _Told] = {}  # by caller, the one answered last at the end
        self._said: tuple[pt.RoundUpdate, RunConfig, pb.News] | None = None  # the newest, to anybody
        self._listed: frozenset[tuple[str, str]] = frozenset()  # likewise: most callers are told the same

    def reply(self, request: pb.PollRequest, message: pt.RoundUpdate | pt.Redirect, caller: Caller) -> pb.PollReply:
        """The answer to a poll that was checked, but for its lease and the coverage."""
        told = self._told.pop(request.peer_id, None)
        if isinstance(message, pt.Redirect):
            reply = pb.PollReply(redirect=message_codec.redirect_to_proto(message))
            listed = self._seen(caller, [message.leader, *message.base.voters])
            reply.contacts.extend(message_codec.contacts_to_proto(listed.items()))
            return reply
        if told is not None and (told.life, told.term, told.version) != (
            request.incarnation,
            message.term,
            request.known,
        ):
            told = None  # its answer may have been lost
        if told is not None and (told.version, told.changes) == (
            message.version,
            self._changes(),
        ):
            self._told[request.peer_id] = told
            return pb.PollReply(unchanged=message_codec.unchanged_to_proto(message))
        listed = self._seen(caller, named(message))
        pairs = frozenset(listed.items())
        self._remember(request, message, pairs)
        if told is not None and told.version == message.version and told.contacts == pairs:
            return pb.PollReply(unchanged=message_codec.unchanged_to_proto(message))
        reply = pb.PollReply(news=self._news(message))
        reply.news.number = message.number
        new = (pair for pair in listed.items() if told is None or pair not in told.contacts)
        reply.contacts.extend(message_codec.contacts_to_proto(new))
        return reply

    def _seen(self, caller: Caller, peer_ids: Iterable[str]) -> dict[str, str]:
        """Not more than one answer may have; who is asked comes last, which the caller has just dialled."""
        return dict(itertools.islice(self._contacts(caller, peer_ids).items(), MAX_CONTACTS))

    def forget(self, peer_id: str) -> None:
        """This caller has gone."""
        self._told.pop(peer_id, None)

    def _news(self, message: pt.RoundUpdate) -> pb.News:
        """Built once: all but its number is the same for everybody."""
        said, config = replace(message, number=0), self._config()
        if self._said is None or self._said[:2] != (said, config):
            plan = None if said.plan is None else self._round_cache.plan(said.plan.round, said.plan.parent)
            news = message_codec.news_to_proto(said, plan)
            news.rules.CopyFrom(rules_to_proto(config))
            self._said = said, config, news
        return self._said[2]

    def _remember(self, request: pb.PollRequest, message: pt.RoundUpdate, listed: frozenset[tuple[str, str]]) -> None:
        self._listed = self._listed if listed == self._listed else listed  # kept once, however many were told
        self._told[request.peer_id] = _Told(
            request.incarnation, message.term, message.version, self._listed, self._changes()
        )
        if len(self._told) > MOST_CALLERS:
            del self._told[next(iter(self._told))]


class KnownContacts:
    """Where nodes can be dialled by the word of the leader that is polled. One node's; its event loop owns it."""

    def __init__(self) -> None:
        self._leader = ""
        self._contacts: dict[str, pb.Contact] = {}

    def hear(
        self, leader: str, known: int, news: pt.RoundUpdate | None = None, new: Iterable[pb.Contact] = ()
    ) -> Sequence[pb.Contact]:
        """All that counts now, whatever others have said meanwhile.

        known: the version that was polled with; 0: this leader tells all of them. news: None if they did not change;
        else ``new`` came with them.
        """
        if not known or leader != self._leader:
            self._leader, self._contacts = leader, {}
        if news is not None:
            contacts = {**self._contacts, **{contact.peer_id: contact for contact in new}}
            self._contacts = {peer: contacts[peer] for peer in named(news) if peer in contacts}
        return list(self._contacts.values())


def named(message: pt.RoundUpdate) -> list[str]:
    """Nodes that who hears it may have to dial."""
    places = [] if message.plan is None else [place.node for place in message.plan.places]
    return [message.leader, *message.base.voters, *message.nodes, *message.sources, *places]

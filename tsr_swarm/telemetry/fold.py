"""Events into the state of a run: ``fold(snapshot, time, event) -> snapshot``, pure.

``fold`` takes in the events of a run, or all that one peer says of itself; ``fold_own`` takes in the latter beside the
events of the run that they belong to.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from tsr_swarm.telemetry import events as e
from tsr_swarm.telemetry.plain import describe, is_alert, name_of
from tsr_swarm.telemetry.snapshot import LEFT, LogLine, PeerView, RoundPoint, SwarmSnapshot
from tsr_swarm.telemetry.text import clean

KINDS = ("core", "sketch", "gradient", "moment", "dense", "basis", "state", "control")
OTHER_KIND = "other"
LOG_LINES = 200
HISTORY_POINTS = 4000
GONE_PEERS = 50
_WAITS = "waits for a leader"
_BUSY = ("joining", "training", "sent", "applied")
OWN_NEWS = e.OwnEvent | e.LeaderLost | e.Warned
PeerEvent = e.PeerJoined | e.PeerLeft | e.PeerProgress | e.PeerInRound


def fold_all(snapshot: SwarmSnapshot, recorded: Iterable[e.Stamped]) -> SwarmSnapshot:
    """``fold`` over several events."""
    for stamped in recorded:
        snapshot = fold(snapshot, stamped.time, stamped.event)
    return snapshot


def fold(snapshot: SwarmSnapshot, time: float, event: e.Event) -> SwarmSnapshot:
    """The state after ``event``, which happened at ``time``. Never raises, whatever the order of events."""
    started = time if snapshot.started is None else snapshot.started
    after = _apply(replace(snapshot, started=started, time=max(snapshot.time, time)), time, event)
    is_known = isinstance(event, e.LeaderLost) and snapshot.is_leaderless  # each node notices it
    return after if is_known else _with_line(after, time, event, describe(event))


def fold_own(snapshot: SwarmSnapshot, time: float, event: e.Event) -> SwarmSnapshot:
    """The state after an event of the peer whose screen this is, beside the events of the whole run."""
    started = time if snapshot.started is None else snapshot.started
    after = _apply_own_state(replace(snapshot, started=started), event)
    # A round that has this peer's work is in the log already, as a round of all peers.
    is_news = not event.included if isinstance(event, e.RoundApplied) else isinstance(event, OWN_NEWS)
    text = describe(event) if is_news else None
    return _with_line(after, time, event, None if text is None else clean(f"this peer: {text}"))


def _with_line(s: SwarmSnapshot, time: float, event: e.Event, text: str | None) -> SwarmSnapshot:
    """Add ``text`` on ``event`` to the log, of which the newest LOG_LINES are kept; nothing for None."""
    if text is None:
        return s
    return replace(s, log=(*s.log, LogLine(time=time, text=text, is_alert=is_alert(event)))[-LOG_LINES:])


def _apply(s: SwarmSnapshot, time: float, event: e.Event) -> SwarmSnapshot:
    match event:
        case e.RunStarted():
            return _start(s, event)
        case e.Evaluated():
            return _add_point(s, RoundPoint(round=event.round, loss=event.loss))
        case e.LeaderChanged():
            return _change_leader(s, event)
        case e.LeaderLost():
            return replace(s, is_leaderless=True, phase="waiting", phase_reason="", deadline=None)
        case e.RoundOpened():
            opened = replace(s, round=event.round, phase="train", phase_reason="", deadline=None, finished=None)
            peers = {key: _enter(peer, event.round) for key, peer in s.peers.items()}
            return replace(opened, is_leaderless=False, peers=peers)
        case e.PhaseChanged():
            deadline = None if event.deadline is None else time + max(0.0, event.deadline)
            phase, reason = clean(event.phase, 16), clean(event.reason)
            changed = replace(s, round=event.round, phase=phase, phase_reason=reason, deadline=deadline)
            return replace(changed, is_leaderless=False)
        case e.RoundVoid():
            return replace(s, deadline=None, phase_reason=f"round {event.round} is void")
        case e.RoundClosed():
            return _close(s, event)
        case e.EarlierRounds() if event.round > s.closed_round:
            return _catch_up(s, event)
        case e.DataCovered():
            return replace(s, epoch=event.epoch, share=min(1.0, max(0.0, event.share)))
        case e.LabReady():
            return replace(s, lab=clean(event.mode, 16))
        case e.RunFinished():
            return _finish(s, event)
        case e.Joined() | e.RoundApplied() | e.Left():
            return _apply_own(s, event)
        case e.PeerJoined() | e.PeerLeft() | e.PeerProgress() | e.PeerInRound():
            return _apply_peer(s, event)
    return s


def _start(s: SwarmSnapshot, event: e.RunStarted) -> SwarmSnapshot:
    """A new run starts from nothing; the same one resumed keeps its history, but its peers have to join again."""
    before = replace(s, peers={}) if s.run_id in ("", event.run_id) else SwarmSnapshot(started=s.time, time=s.time)
    return replace(
        before,
        run=name_of(event.run),
        run_id=event.run_id,
        address=clean(event.address, 80),
        rounds=event.rounds,
        min_peers=event.min_peers,
        voters=event.voters,
        version=clean(event.version, 32),
        leader="",
        is_safe=event.voters >= 3,
        is_leaderless=False,
        phase="waiting",
        deadline=None,
        finished=None,
    )


def _finish(s: SwarmSnapshot, event: e.RunFinished) -> SwarmSnapshot:
    """No peer trains any more; the table keeps the peers that were here. The last round is a closed one."""
    peers = {
        key: replace(p, state="done" if p.state in _BUSY else p.state, tokens_per_second=0.0)
        for key, p in s.peers.items()
    }
    phase, round = "stopped" if event.is_stopped else "finished", max(s.closed_round, event.rounds)
    over = replace(s, peers=peers, round=round, phase=phase, phase_reason="", deadline=None, is_leaderless=False)
    return replace(over, finished=clean(event.reason), is_stopped=event.is_stopped, digest=clean(event.digest))


def _change_leader(s: SwarmSnapshot, event: e.LeaderChanged) -> SwarmSnapshot:
    """Set who leads, and how safely. A leader that was lost has left with that, until it joins again."""
    name = name_of(event.name)
    led = replace(s, leader=name, voters=event.voters, is_safe=event.is_safe, is_leaderless=False)
    if not s.is_leaderless:
        return led
    led = replace(led, phase_reason=f"{name} leads now")
    lost = [peer for peer in s.alive if peer.name == s.leader != name]
    gone = {p.peer: replace(p, state=LEFT, reason="it was lost while it led", tokens_per_second=0.0) for p in lost}
    return replace(led, peers={**led.peers, **gone})


def _apply_peer(s: SwarmSnapshot, event: PeerEvent) -> SwarmSnapshot:
    peer = _peer(s, event.peer, event.name)
    match event:
        case e.PeerJoined(number=0):
            return s  # the screen shows no nodes that do not train
        case e.PeerJoined():
            peer = replace(
                peer,
                number=event.number,
                device=clean(event.device, 64),
                local_space=clean(event.local_space, 16),
                is_client_only=not event.address,
                state="joining",
                reason="",
                round=s.round,
                step=0,
                steps=0,
                tokens_per_second=0.0,
            )
        case e.PeerLeft():
            peer = replace(peer, state=LEFT, reason=clean(event.reason), tokens_per_second=0.0)
            return _forget_old(_with_peer(s, peer))
        case e.PeerProgress():
            is_old = event.round < peer.round or (event.round == peer.round and peer.state == "sent")
            peer = replace(peer, tokens_per_second=max(0.0, event.tokens_per_second))
            if not is_old:  # progress is sent apart from payloads, and may arrive after the payload it led to
                peer = replace(peer, state="training", reason="", round=event.round, step=event.step, steps=event.steps)
        case e.PayloadReceived():
            loss = peer.local_loss if event.local_loss is None else event.local_loss
            peer = replace(peer, state="sent", reason="", round=event.round, step=peer.steps, local_loss=loss)
        case e.PayloadLate() | e.PayloadRefused():
            state = "late" if isinstance(event, e.PayloadLate) else "refused"
            peer = replace(peer, state=state, reason=clean(event.reason))
        case e.DigestReported():
            peer = replace(peer, state="applied", reason="", round=max(peer.round, event.round + 1))
            if s.phase in ("train", "exchange"):  # the next round was open already: it is in it now
                peer = _enter(peer, s.round)
        case e.DigestMismatch():
            peer = replace(peer, state="differs", reason="its weights differ")
    return _with_peer(s, peer)


def _apply_own(s: SwarmSnapshot, event: e.Joined | e.RoundApplied | e.Left) -> SwarmSnapshot:
    """A peer's own stream shows a swarm of one peer, itself."""
    match event:
        case e.Joined():
            name = name_of(event.name)
            own = replace(_peer(s, name, name), number=event.number, is_client_only=not event.address)
            joined = replace(s, run=name_of(event.run), own_name=name, round=event.round)
            return _with_peer(joined, replace(own, state="joining", round=event.round))
        case e.RoundApplied():
            applied = replace(s, round=event.round, last_seconds=event.seconds, digest=clean(event.digest))
            included = (s.rounds_included or 0) + int(event.included)
            applied = replace(applied, rounds_included=included, is_leaderless=False)  # the round had a leader
            applied = _add_point(applied, RoundPoint(round=event.round, local_loss=event.local_loss))
            traffic: e.PeerTraffic = {**event.wire_bytes, "overhead": event.overhead}
            applied = _count_bytes(applied, event.wire_bytes, {s.own_name: traffic})
            return _set_own(applied, "applied", event.local_loss)
        case e.Left():
            return replace(_set_own(s, LEFT, None), finished=clean(event.reason))


def _close(s: SwarmSnapshot, event: e.RoundClosed) -> SwarmSnapshot:
    closed = _add_point(s, RoundPoint(round=event.round, loss=event.loss, local_loss=event.local_loss))
    closed = _count_bytes(closed, event.wire_bytes, event.per_peer)
    if event.round <= s.closed_round:  # two leaders report it: the first was lost meanwhile
        return replace(closed, rounds_counted=s.rounds_counted)
    return replace(
        closed,
        round=max(s.round, event.round),
        closed_round=event.round,
        raw_bytes=s.raw_bytes + event.raw_bytes["sent"] + event.raw_bytes["received"],
        dense_bytes=s.dense_bytes + event.dense_bytes,
        last_seconds=event.seconds,
        digest=clean(event.digest),
    )


def _catch_up(s: SwarmSnapshot, event: e.EarlierRounds) -> SwarmSnapshot:
    """Replace what was counted here of those rounds by their totals."""
    anew = {key: replace(peer, up=0, down=0, overhead=0) for key, peer in s.peers.items()}
    counted = replace(s, peers=anew, sent={}, received={}, overhead=0)
    counted = _count_bytes(counted, event.wire_bytes, event.per_peer)
    return replace(
        counted,
        round=max(s.round, event.round),
        closed_round=event.round,
        rounds_counted=event.rounds,
        raw_bytes=event.raw_bytes["sent"] + event.raw_bytes["received"],
        dense_bytes=event.dense_bytes,
    )


def _count_bytes(s: SwarmSnapshot, total: e.Traffic, per_peer: Mapping[str, e.PeerTraffic]) -> SwarmSnapshot:
    """Add the bytes of a round, of all peers and of each."""
    by_name = {name_of(name): traffic for name, traffic in per_peer.items()}
    peers = dict(s.peers)
    for key, peer in s.peers.items():
        if peer.name in by_name:
            traffic = by_name[peer.name]
            peers[key] = replace(
                peer,
                up=peer.up + sum(traffic["sent"].values()),
                down=peer.down + sum(traffic["received"].values()),
                overhead=peer.overhead + traffic.get("overhead", 0),
            )
    overhead = s.overhead + sum(traffic.get("overhead", 0) for traffic in by_name.values())
    sent, received = _add(s.sent, total["sent"]), _add(s.received, total["received"])
    counted = replace(s, peers=peers, sent=sent, received=received, overhead=overhead)
    return replace(counted, rounds_counted=s.rounds_counted + 1)


def _add(counts: Mapping[str, int], more: Mapping[str, int]) -> dict[str, int]:
    result = dict(counts)
    for kind, count in more.items():
        known = kind if kind in KINDS else OTHER_KIND
        result[known] = result.get(known, 0) + count
    return result


def _add_point(s: SwarmSnapshot, point: RoundPoint) -> SwarmSnapshot:
    """Merge ``point`` into the history by round; when it grows too long, every second old point goes."""
    position = len(s.history)
    while position and s.history[position - 1].round > point.round:
        position -= 1
    before, after = s.history[:position], s.history[position:]
    if before and before[-1].round == point.round:
        old = before[-1]
        point = RoundPoint(
            round=point.round,
            loss=old.loss if point.loss is None else point.loss,
            local_loss=old.local_loss if point.local_loss is None else point.local_loss,
        )
        before = before[:-1]
    history = (*before, point, *after)
    if len(history) > HISTORY_POINTS:
        half = HISTORY_POINTS // 2
        history = (*history[:half:2], *history[half:])
    return replace(s, history=history)


def _peer(s: SwarmSnapshot, peer: str, name: str) -> PeerView:
    """The peer as known so far. In a peer's own stream its key is its name, which is known before its id."""
    shown = name_of(name)
    key = shown if shown == s.own_name and shown in s.peers else peer
    known = s.peers.get(key)
    return PeerView(peer=key, name=shown, round=s.round) if known is None else known


def _with_peer(s: SwarmSnapshot, peer: PeerView) -> SwarmSnapshot:
    return replace(s, peers={**s.peers, peer.peer: peer})


def _enter(peer: PeerView, round: int) -> PeerView:
    """A peer when ``round`` opens: it trains if it was done with the last one; one that was behind shows as lagging."""
    if peer.state not in ("applied", "sent", "late", "refused") or peer.round > round:
        return peer
    return replace(peer, state="training", reason="", step=0)


def _set_own(s: SwarmSnapshot, state: str, loss: float | None) -> SwarmSnapshot:
    """Set the state and the loss of the peer whose stream this is."""
    peers = dict(s.peers)
    for key, peer in s.peers.items():
        if peer.name == s.own_name:
            peers[key] = replace(peer, state=state, round=s.round, local_loss=peer.local_loss if loss is None else loss)
    return replace(s, peers=peers)


def _forget_old(s: SwarmSnapshot) -> SwarmSnapshot:
    forgotten = [key for key, peer in s.peers.items() if not peer.is_alive][:-GONE_PEERS]
    return replace(s, peers={key: peer for key, peer in s.peers.items() if key not in forgotten})


def _apply_own_state(s: SwarmSnapshot, event: e.Event) -> SwarmSnapshot:
    match event:
        case e.Joined():
            return replace(s, own_name=name_of(event.name), own_state="trains on")
        case e.RoundApplied() if s.own_state == _WAITS and event.round <= s.round:
            return s  # the lost leader itself had closed that round
        case e.StateReceived() | e.RoundApplied():
            return replace(s, own_state="trains on")
        case e.CatchingUp():
            return replace(s, own_state="catches up")
        case e.LeaderLost():
            return replace(_apply(s, s.time, event), own_state=_WAITS)
        case e.Left():
            return replace(s, own_end=clean(event.reason))
    return s

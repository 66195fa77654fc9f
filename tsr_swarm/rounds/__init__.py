"""All decisions of a swarm: pure functions from what a node knows and what has happened to what it does.

Nothing here touches a tensor, a socket, a disk or a clock, so tests can play any order of events in virtual time.
Begin with protocol.py (messages, events and actions) and step.py, which hands each event to the node's part as a
leader (leader.py, round_phases.py), reducer (reducer.py), follower (follower.py, state.py) or voter (raft.py,
raft_state.py). leases.py and catch_up.py stand alone: who trains on which data, and how a peer catches up.
"""

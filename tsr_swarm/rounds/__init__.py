"""Every decision of a swarm, as pure functions of messages and time: Raft, the phases of a round, shards, leases.

No torch, no asyncio, no input or output: each state machine takes an input and returns the actions to carry out.
Begin with ``protocol.py``, what nodes say to each other, and ``step.py``, one node's decisions.
"""

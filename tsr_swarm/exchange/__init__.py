"""What is exchanged in a round: local work becomes a contribution, contributions become a published round.

No sockets, no disk and no clock: a node and a simulation call the same functions. Begin with ``reduction.py``.
"""

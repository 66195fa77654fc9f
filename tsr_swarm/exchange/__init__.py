"""What is exchanged in a round: local work becomes a contribution, contributions become a published round.

No sockets, no disk and no clock: a node and a simulation call the same functions. Begin with ``contribution.pack``,
which makes what a peer sends, and ``reduction.publish_shard``, which averages it.
"""

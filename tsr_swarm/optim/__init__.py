"""How peers step between rounds and how their averages are applied: local spaces, consensus, the outer step.

Tensors only: no network, no disk, no clock. ``TSRAdam`` is the optimizer for use outside of a swarm. Begin with
``local_space.py``, what a peer moves between rounds, and ``consensus.py``, what all peers share.
"""

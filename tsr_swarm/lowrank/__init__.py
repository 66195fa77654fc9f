"""Low-rank algebra on tensors: bases, integer grids, sketches, and the lift that is exact on every machine.

Functions of tensors alone: no model, no optimizer state, no bytes. Begin with ``basis.py``, the pair of integer
matrices that a block is projected by, and ``exact.py``, why every peer computes the same weights to the bit.
"""

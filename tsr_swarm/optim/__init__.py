"""Optimizers: what a peer trains between two exchanges, what the reducer makes of a mean, and the shared state.

Pure torch, on top of config and lowrank: nothing here knows the network, disks, or the model. Begin with
local_space.py, the interface of a peer (core_space.py and full_space.py implement it), then outer_step.py and
publish.py for the reducer, and consensus.py for the state that every peer holds. periods.py says what each round asks.
tsr_adam.py is a torch optimizer of its own, for one process.
"""

"""Operating-system processes: how they are started, stopped and cleaned up, and what the machine allows them.

``shutdown`` is how a process is asked to stop, ``supervisor`` starts children that never outlive it, ``reaper`` is the
small process that cleans up when their owner is dead, ``machine_limits`` checks memory and threads before work begins,
and ``tasks`` has two helpers for one event loop. Nothing here knows what a process is for: no model, no run, no torch.

Begin with ``shutdown.Shutdown`` and ``supervisor.ProcessGroup``.
"""

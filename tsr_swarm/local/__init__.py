"""A whole swarm on this machine: a coordinator and its peers, each its own process, as people would start them.

``supervise`` starts the processes and injects the faults, ``run_view`` picks the events of the run from what they
print, ``faults`` and ``flags`` are the faults and how they are written, ``folder`` is where a run is kept, and
``network`` shapes what the processes reach each other over. Nothing is simulated here; simulated peers live in
``simulate``.

Begin with ``supervise.run_local``.
"""

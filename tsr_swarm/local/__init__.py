"""A swarm of real processes on this machine, with faults and home lines on request. Begin with ``supervise.py``."""

"""Operating-system processes: how they are started, watched, limited and stopped, so that none is left behind.

Nothing here knows what the processes do. Begin with ``supervisor.py``.
"""

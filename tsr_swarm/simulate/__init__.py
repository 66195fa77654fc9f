"""Simulated peers of one method or another in one process, and comparisons of many runs.

Bytes and rounds are those of real runs; only sockets are missing. Begin with ``engine.py``.
"""

"""Calls between peers over gRPC: deadlines, size limits, byte counts, and errors that arrive as what they were.

``base.py`` is the interface that a node implements, ``server.py`` answers calls with it, ``client.py`` makes them.
Only this folder knows gRPC; nothing here knows rounds. Begin with ``base.py``.
"""

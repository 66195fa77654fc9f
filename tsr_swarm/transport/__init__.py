"""Calls between nodes over gRPC. Nothing else in the package knows gRPC.

Begin with ``base.py``, the calls that a node answers, then ``server.py`` and ``client.py``.
"""

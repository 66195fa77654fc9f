"""One process of a run: it carries out, with sockets, disk and torch, what ``rounds`` decides.

Begin with ``node.py``, which puts the parts of a node together and hands them what was decided, and with
``context.py``, which all of them share. ``driver.py`` feeds the decisions with events and time. ``peer.py`` and
``coordinator.py`` are the programs around a node.
"""

"""One process of a run: it carries out, with sockets, disk and torch, what ``rounds`` decides.

Begin with ``build.py``, which puts the parts of a node together, each with references to the parts below it, and with
``context.py``, which all of them share. ``driver.py`` feeds the decisions with events and time, ``node.py`` hands
their actions to the parts. ``peer.py`` and ``coordinator.py`` are the programs around a node.
"""

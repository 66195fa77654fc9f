"""One process of a run: it carries out, with sockets, disk and torch, what ``rounds`` decides.

Begin with ``node.py``, which puts the parts of a process together, then ``driver.py``, which feeds the decisions with
messages and time and hands their actions to those parts.
"""

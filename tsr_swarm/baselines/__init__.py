"""Other methods of training over slow links, to compare with, as their papers describe them.

Each has a file of its own with its source, its settings and its departures from the paper. Begin with ``method.py``,
what all of them share, and ``registry.py``, their names.
"""

"""The screen of a run in a terminal, made with Textual: it follows the run's events and only reads.

``sources.py`` says where event lines come from, ``app.py`` folds them into a snapshot and hands a ``View`` of it to the
parts of the screen, which are a file each. Nothing here trains, calls a peer by itself, or loads torch.
Begin with ``app.py``.
"""

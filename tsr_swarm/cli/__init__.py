"""The commands: each reads its options, calls what does the work, and shows the result or one sentence of error.

Begin with ``main.py``, the list of commands and the exit codes.
"""

"""The command line: each command's options, and how what happens is shown.

A command is the function of its name in the module of its name; it checks its options, calls the layer below and turns
errors into sentences. ``options`` are shared by several commands, ``output`` shows events, ``process`` runs the work
with signals and exit codes and keeps a slow reader from holding it up, and ``screen`` shows the monitor over it. No
decision about a run is made here. Begin with ``main.py``.
"""

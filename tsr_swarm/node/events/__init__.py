"""Events of a run, for people: what a leader reports of its rounds, and how every node gets the log of them.

Nothing here decides anything, and no round waits for it longer than a few seconds. Begin with ``round_reporter``, which
makes a leader's events, and ``run_log``, which keeps them and copies those of other leaders.
"""

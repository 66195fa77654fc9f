"""Simulated swarms in one process: our own method with its real code, and the baselines, compared by loss and bytes.

Begin with run_spec.py, what a run is, then engine.py, which carries one out; swarms.py has the two kinds of swarm that
it drives. runner.py does many runs, result.py keeps them, and compare.py, report.py and plots.py show them. No sockets,
no wall clock: time follows from bytes and steps.
"""

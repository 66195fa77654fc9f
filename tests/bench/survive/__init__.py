"""Scenarios of real processes that things happen to, and what is found out about each run."""

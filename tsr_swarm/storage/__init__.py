"""All that a node keeps on disk: checkpoints, its votes, rounds that others may ask for, and the run's folder.

Each file is written so that a crash leaves either the old content or the new one. Begin with ``run_folder.py``.
"""

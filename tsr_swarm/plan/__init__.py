"""What a run will cost in bytes, time and memory, worked out without training. Begin with ``search.py``."""

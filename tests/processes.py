"""What tests of whole processes share: a tiny run, the command, and what a lab may leave."""

import os
import sys
from pathlib import Path

TINY = """
[model]
hidden_size = 32
intermediate_size = 48
num_hidden_layers = 1
num_attention_heads = 2
num_key_value_heads = 2
max_position_embeddings = 64
[data]
sequence_length = 32
batch_size = 4
[periods]
k_x = 5
[checkpoint]
dir = "run"
"""  # a step takes milliseconds
COMMAND = [sys.executable, "-m", "tsr_swarm"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TERM": "dumb"}


def namespaces() -> set[str]:
    """Network namespaces that any process is in."""
    found = set()
    for process in Path("/proc").glob("[0-9]*/ns/net"):
        try:
            found.add(os.readlink(process))
        except OSError:
            continue  # it has ended
    return found

"""Make the rig importable, and check that no test leaves a thread or a task at work behind."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

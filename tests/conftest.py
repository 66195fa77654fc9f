"""Make what tests of several packages share importable, and give generated examples no deadline on a busy machine."""

import sys
from pathlib import Path

from hypothesis import settings

sys.path.insert(0, str(Path(__file__).parent))
settings.register_profile("no_deadline", deadline=None)
settings.load_profile("no_deadline")

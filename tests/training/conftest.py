"""Puts the training scripts, which import each other by name, on the path."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "training" / "mini"))

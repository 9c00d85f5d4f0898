"""The store is no package: its modules are found as `benchmarks/store.py` finds them."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

"""Modules of tools/pages by their names, as mkdocs imports them."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "tools" / "pages"))

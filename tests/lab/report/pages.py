"""What the pages of these tests show."""

from __future__ import annotations

from collections.abc import Callable

from foveate import Method
from foveate.lab.story import Story

NASTY = "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'> & \"{{data}}\" \u2028"
METHODS = ("luvc", "ipcv", "tome", "visionzip+vtw", "downsample")

Tell = Callable[[Method], Story]
"""The fixture ``told``: a method's story of a scene."""

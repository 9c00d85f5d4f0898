"""What a method may answer at a site: a `Reduction`, or one of the classes of this file."""

from __future__ import annotations

from foveate.tokens import Reduction

Answer = Reduction

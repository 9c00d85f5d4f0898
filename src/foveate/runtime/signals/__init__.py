"""Signals: what methods ask to know of tokens, read without eager attention and only where a site asks for it.

`kinds` has one file for each kind, whose class (`kind.Kind`) says where it exists and how it is read. `kernel` stands between
an attention module and its kernel, `reading` keeps what it sees, `past` what earlier layers have left for later sites.
"""

from __future__ import annotations

from foveate.runtime.signals.kernel import Probe as Probe
from foveate.runtime.signals.kernel import real_implementation as real_implementation
from foveate.runtime.signals.kernel import watch as watch
from foveate.runtime.signals.pattern import Pattern as Pattern
from foveate.runtime.signals.reading import Reading as Reading

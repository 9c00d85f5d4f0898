"""``foveate bench``: how long the stages of a call take, what it needs, and from where on a method pays.

`plan` says what, `shapes` builds models with random weights, `workload` prompts for them; `sweep` runs rounds of calls that
`measure` times, and `result` keeps every number; `summary` makes medians and ratios of them, `show` and `plot` tables and
pictures. `memory` and `flops` count.
"""

from foveate.lab.bench.plan import Request

__all__ = ["Request"]

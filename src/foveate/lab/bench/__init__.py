"""``foveate bench``: how long the stages of a call take, what it needs, and from where on a method pays.

`request` says what, `plan` which methods; `shapes` builds models with random weights, `workload` prompts for them; `sweep` runs
rounds of calls that `measure` times, and `result` keeps every number; `summary` makes medians and ratios of them, `show` and
`plot` tables and pictures. `memory` and `flops` count.
"""

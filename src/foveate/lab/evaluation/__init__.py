"""``foveate eval`` and ``foveate tune``: what methods lose at a given cost, whatever the questions.

`request` says what can be asked for; `plan` which methods are measured at which budgets, and `runner` asks them; `store` keeps
answers and `costs` what methods spend; `statistics` judges; `results` and `report` show. Three sources of questions: `protocol`
(the reference models' own, with `subject`, `batches`, `asking`, and in `bounds` the oracle), `fidelity` (anybody's images,
without labels; `tune` searches by it), and `lmms` (public benchmarks).
"""

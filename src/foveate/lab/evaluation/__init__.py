"""``foveate eval`` and ``foveate tune``: what methods lose at a given cost, whatever the questions.

`request` says what can be asked for and `questions` what is asked; `plan` which methods are measured at which budgets, `costs`
what they spend, `forced` how far two runs are apart; `runner` asks, and `store` keeps answers; `statistics` judges; `results`
and `report` show. Three sources of questions: `reference` (the reference benchmark, with the oracle of `bounds`), `fidelity`
(anybody's images, without labels; `tune` searches by it), and `lmms` (public benchmarks).
"""

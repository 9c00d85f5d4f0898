"""``foveate train``: what a command may ask for is checked here, and each kind of training has a module.

`reference` trains a shipped model from nothing; `adsc` teaches a model to work with fewer tokens, with `data`, `collator`
and `curriculum`.
"""

"""What a model type would need to be a family: ``foveate families --inspect``.

`tiny` makes a small model of it from its config class, `trial` finds an image prompt that the model takes, `spies` notes which
module was called with what, `tower`, `joints` and `decoder` read the facts from these notes, and `proposal` writes the file.
"""

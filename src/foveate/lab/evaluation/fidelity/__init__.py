"""``foveate eval fidelity``: how far a method moves a model's next-token distributions, on anybody's images, without labels.

`prompts` says what is asked, `stock` loads the model, `forced` compares two runs of it, `measuring` goes through methods and
keeps what came out, `table` shows it.
"""

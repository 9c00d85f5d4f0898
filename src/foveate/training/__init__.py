"""Training of methods that have something to learn, on a model and data of the user (`foveate.learning` has the interface).

`data` reads chats with images, `collator` makes batches with labels of them; `relaxed` is a method in its soft forward, `pupil`
the model with it, `curriculum` walks through stages while `run` trains, and `card` says what came out.
"""

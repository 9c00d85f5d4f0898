"""The laboratory: everything around the library that asks what a method is worth. Nothing in the library imports it.

`cli` is the command ``foveate``, with a module for each command: `demo`, `run`, `serve`, `catalog`, `train`, `evaluation`
(``eval`` and ``tune``), `bench`, `report`. `terminal`, `options`, `loading`, `prompting` and `needs` are what the commands
share; `story` says what became of every token, and `overlay` draws it.
"""

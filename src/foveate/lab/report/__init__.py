"""``foveate report``: one HTML page on which one sees what methods do with the tokens of an image.

`collect` asks a model, `plots` reads the results of other commands, `page` writes one file that is enough in itself.
"""

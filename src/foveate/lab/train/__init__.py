"""``foveate train``: what a command may ask for is checked here.

`reference` trains a shipped model from nothing; `adsc` teaches a model to work with fewer tokens, and `exhibits` are the
reference benchmark's chats for that.
"""

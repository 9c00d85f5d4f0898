"""``foveate train``: what a command may ask for is checked here.

`reference` trains a shipped model from nothing; `method` trains a method that has something to learn, and `exhibits` are the
reference benchmark's chats for that.
"""

"""Pure tensor functions on packed tokens. Only torch is imported here.

Packed tokens are one tensor ``(N, ...)`` that holds the tokens of ``S`` spans one after another; ``counts`` is the
tuple of the ``S`` span lengths, kept on the host so that no function has to ask the device for a shape.
"""

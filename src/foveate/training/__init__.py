"""LoRA training of a model to work with fewer tokens.

`data` reads chats with images, `collator` makes batches with labels of them, `curriculum` changes what the method keeps while
`adsc` trains, and `card` says what came out.
"""

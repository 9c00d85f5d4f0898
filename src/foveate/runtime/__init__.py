"""All bookkeeping, no algorithm: how a reduced token set travels through a stock model.

Nothing here names a method. Read in this order: `layout` (which tokens are present), `masks`, `cache`, `positions`,
`signals`, then `tower`, `entry` and `decoder` (the hooks), and `attach`, which puts them on a model.
"""

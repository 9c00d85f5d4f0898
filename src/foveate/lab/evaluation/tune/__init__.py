"""``foveate tune``: search a method's layer, options or schedule by fidelity.

`search` knows where to look, `trials` judges and keeps what was judged, `tuning` has the search and the check of what it found,
`table` shows it.
"""

"""``foveate leaderboard``: every method at equal measured cost, and a page that ranks them.

It puts together what other commands do, and measures nothing by itself: `rounds` asks by the evaluation of the reference
benchmark, and `speed` times by the bench; `board` has the rows, which a folder keeps; `page` shows them.
"""

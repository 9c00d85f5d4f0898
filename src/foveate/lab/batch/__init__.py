"""``foveate run --data``: a file of questions in, a file of answers out.

`answering` asks a model in batches, `answers` keeps what came out, `work` goes through the records and counts.
"""

from foveate.lab.batch.work import Request, Result, run, show, to_dict

__all__ = ["Request", "Result", "run", "show", "to_dict"]

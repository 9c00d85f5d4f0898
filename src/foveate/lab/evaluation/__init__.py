"""``foveate eval``: how much each method loses at each budget, on the reference benchmark.

`protocol` asks (`plan` says what, `subject` loads the model, `batches` and `asking` make one call, `store` keeps the
answers); `results` and `statistics` judge; `report` and `curve` show. `bounds` has the oracle and the anti-oracle.
"""

from foveate.lab.evaluation.protocol import Evaluation, Request, evaluate

__all__ = ["Evaluation", "Request", "evaluate"]

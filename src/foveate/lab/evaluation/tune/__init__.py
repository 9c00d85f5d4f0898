"""``foveate tune``: search a method's layer, options or schedule on prompts without labels, and check it on others.

`goal` says what is looked for, `search` proposes, `trials` judges and remembers, `tuning` checks, `table` shows.
"""

from foveate.lab.evaluation.tune.goal import Request
from foveate.lab.evaluation.tune.tuning import Tuned, tune

__all__ = ["Request", "Tuned", "tune"]

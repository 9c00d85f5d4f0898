"""The reference model and its data: accuracy can be measured without downloading anything.

>>> from foveate import reference
>>> model, processor = reference.load()
>>> scene = reference.make_scene(reference.split_seed("test", 0))

This package knows nothing of compression. The parts: `scenes` draws images and asks questions, `model`
builds, saves and loads the model, `evaluate` measures it through the stock Hugging Face path, `train` makes
it; `batches` and `fast` serve training.
"""

from .model import PATH, load, load_processor
from .scenes import ANSWERS, TASKS, Object, Question, Scene, ask, make_scene, split_seed

__all__ = [
    "ANSWERS",
    "PATH",
    "TASKS",
    "Object",
    "Question",
    "Scene",
    "ask",
    "load",
    "load_processor",
    "make_scene",
    "split_seed",
]

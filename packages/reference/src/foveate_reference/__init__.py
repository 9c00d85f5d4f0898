"""The reference models and their data: accuracy can be measured without downloading anything.

>>> import foveate_reference as reference
>>> model, processor = reference.load("llava")
>>> sample = reference.samples("test", tasks=["color"], per_task=1)[0]

This package knows nothing of compression. From bottom to top: `vocabulary` has the words, `assets` the photographs,
digits and fonts, `drawing` the strokes; `scenes`, `boards` and `sequences` make pictures and ask about them,
`exhibits` gives them one face, `data` makes benchmarks of them. `model` builds, saves and loads the models;
`batches`, `fast` and `train` train them, `evaluate` measures them. `language` is the model with a pretrained language model.
"""

from . import language
from .data import SEEDS, Sample, samples, to_dataset
from .drawing import Object, Picture
from .model import ARCHITECTURES, MODELS, PATHS, load, load_processor
from .scenes import Question, ask, make_scene, split_seed
from .vocabulary import ANSWERS, CORE, GROUPS, STANDS_FOR, TASKS

__version__ = "0.1.0"

__all__ = [
    "ANSWERS",
    "ARCHITECTURES",
    "CORE",
    "GROUPS",
    "MODELS",
    "PATHS",
    "SEEDS",
    "STANDS_FOR",
    "TASKS",
    "Object",
    "Picture",
    "Question",
    "Sample",
    "ask",
    "language",
    "load",
    "load_processor",
    "make_scene",
    "samples",
    "split_seed",
    "to_dataset",
]

"""Questions and answers in English, for a model whose language model has read English.

The small reference models know 139 words, and a question to them has four. `in_english` says the same question as a
person would ask it; the answers become words of one to three tokens.

>>> from foveate_reference import samples
>>> sample = in_english(samples("test", tasks=["color"], per_task=1)[0])
>>> sample.question.startswith("What color is the ")
True
"""

from __future__ import annotations

from dataclasses import replace

from foveate_reference.data import Sample
from foveate_reference.vocabulary import CELLS, QUADRANTS, TASKS

PHRASES = {
    "color": "What color is the {2}?",
    "shape": "What shape is {2}?",
    "count": "How many {2} things are there?",
    "exist": "Is there any {1} {2}?",
    "where": "In which corner is the {2}?",
    "side": "Is the {1} left or right of the {2}?",
    "height": "Is the {1} above or below the {2}?",
    "read": "Which character is in the {2} box?",
    "texture": "What does the background look like?",
    "digit": "Which handwritten digit is in the {2} box?",
    "word": "Which word is in the {2} box?",
    "cell": "Where in the image is the {2}?",
    "odd": "What color is the odd one out?",
    "absent": "Do you see any {2}?",
    "chart": "What color is the {0} bar?",
    "table": "Which digit is in row {1}, column {2}?",
    "document": "What stands beside the word {2}?",
    "pair": "Which image shows the {2}?",
    "move": "Which way does the {2} move?",
    "appear": "In which image does the {2} appear first?",
}
"""What a question of each task says; the numbers are places of its four words."""

_TEXTURES = {
    "plain": "plain",
    "rows": "horizontal stripes",
    "columns": "vertical stripes",
    "checker": "checkered",
    "diagonal": "diagonal stripes",
    "photo": "a photo",
}
_ROWS = {"top": "top", "mid": "middle", "low": "bottom"}
_COLUMNS = {"1": "left", "2": "center", "3": "right"}
_ANSWERS = (
    _TEXTURES
    | {name: name.replace("top", "top ").replace("bottom", "bottom ") for name in QUADRANTS}
    | {cell: f"{_ROWS[cell[:3]]} {_COLUMNS[cell[3]]}" for cell in CELLS}
)
"""The English of those answers that are no English words; all others stay as they are."""


def question_in_english(task: str, text: str) -> str:
    """Say the four words of a question as a person would ask it.

    >>> question_in_english("side", "side circle star ?")
    'Is the circle left or right of the star?'
    """
    if task not in TASKS:
        raise ValueError(f"no task {task!r}; there are {', '.join(TASKS)}")
    return PHRASES[task].format(*text.split())


def answer_in_english(answer: str) -> str:
    """Say an answer in English words.

    >>> answer_in_english("low3"), answer_in_english("red")
    ('bottom right', 'red')
    """
    return _ANSWERS.get(answer, answer)


def in_english(sample: Sample) -> Sample:
    """Return the sample with question, answer and choices in English."""
    return replace(
        sample,
        question=question_in_english(sample.task, sample.question),
        answer=answer_in_english(sample.answer),
        choices=tuple(map(answer_in_english, sample.choices)),
    )

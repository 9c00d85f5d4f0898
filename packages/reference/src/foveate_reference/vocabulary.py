"""The words of the benchmark: tasks, what each stands for, and every word of a question or an answer."""

from __future__ import annotations

SIZE = 160
"""Side in pixels of an image; documents have twice this side."""
CELL = 16
"""Side in pixels of the square that one visual token of a reference model stands for."""

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (225, 35, 35),
    "green": (30, 170, 45),
    "blue": (45, 70, 230),
    "yellow": (240, 225, 40),
    "cyan": (50, 215, 225),
    "magenta": (225, 50, 205),
    "orange": (250, 135, 20),
    "white": (245, 245, 245),
}
SHAPES = ("circle", "square", "triangle", "diamond", "cross", "star", "ring")
LETTERS = tuple("ACEHJKLPSTUX")
DIGITS = tuple("0123456789")
LEXICON = (
    *("go", "me", "ox", "up", "ant", "bee", "bus", "car", "cat", "cup", "dog", "dot", "fox", "hat", "hen", "ice"),
    *("key", "map", "net", "pen", "pie", "rat", "sea", "sun", "bird", "boat", "door", "fish", "milk", "snow", "tree"),
    "wolf",
)
"""Words of two to four letters that are written in images."""
TEXTURES = ("plain", "rows", "columns", "checker", "diagonal", "photo")
QUADRANTS = ("topleft", "topright", "bottomleft", "bottomright")
CELLS = tuple(f"{row}{column}" for row in ("top", "mid", "low") for column in ("1", "2", "3"))
"""The nine fields of a 3 x 3 grid laid over the image, row by row."""
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six")
ORDINALS = ("first", "second", "third", "fourth")
DIRECTIONS = ("left", "right", "up", "down")

CHOICES: dict[str, tuple[str, ...]] = {
    "color": tuple(COLORS),
    "shape": SHAPES,
    "count": NUMBERS,
    "exist": ("yes", "no"),
    "where": QUADRANTS,
    "side": ("left", "right"),
    "height": ("above", "below"),
    "read": (*LETTERS, *DIGITS),
    "texture": TEXTURES,
    "digit": DIGITS,
    "word": LEXICON,
    "cell": CELLS,
    "odd": tuple(COLORS),
    "absent": ("yes", "no"),
    "chart": tuple(COLORS),
    "table": DIGITS,
    "document": (*LETTERS, *DIGITS),
    "pair": ORDINALS[:2],
    "move": DIRECTIONS,
    "appear": ORDINALS,
}
"""The answers that each task may have."""
TASKS = tuple(CHOICES)
CORE = TASKS[:14]
"""Tasks about one image of objects; the others are charts, tables, documents, two images and short videos."""

STANDS_FOR = {
    "color": "GQA, attributes",
    "shape": "GQA, queries of an object by attribute",
    "count": "VQAv2 and TallyQA, counting",
    "exist": "GQA, attribute binding; POPE, adversarial",
    "where": "MMBench, object localisation",
    "side": "VSR and GQA, spatial relations",
    "height": "VSR and GQA, spatial relations",
    "read": "OCRBench, scene text",
    "texture": "MMBench, image style and scene",
    "digit": "OCRBench, handwriting",
    "word": "TextVQA",
    "cell": "RefCOCO, grounding",
    "odd": "MMStar and SEED-Bench, visual reasoning",
    "absent": "POPE, random",
    "chart": "ChartQA",
    "table": "TabFact and WikiTableQuestions as images",
    "document": "DocVQA",
    "pair": "MuirBench and NLVR2, several images",
    "move": "MVBench, moving direction",
    "appear": "MVBench, action localisation",
}
"""The public benchmark whose role a task plays here."""

GROUPS: dict[str, tuple[str, ...]] = {
    "attribute": ("color", "shape", "texture", "exist", "absent", "odd"),
    "counting": ("count",),
    "text": ("read", "digit", "word"),
    "documents": ("chart", "table", "document"),
    "grounding": ("where", "side", "height", "cell", "pair"),
    "video": ("move", "appear"),
}
"""Tasks that ask for the same ability; each task is in one group."""

_QUESTION_WORDS = (
    *("of", "is", "in", "background", "?", "one", "see", "any", "tallest", "shortest", "bar", "value", "image", "with"),
    *("above", "below"),
)
WORDS = tuple(
    dict.fromkeys((*TASKS, *_QUESTION_WORDS, *(answer for choices in CHOICES.values() for answer in choices)))
)
"""The closed vocabulary of questions and answers; a word is a token."""
ANSWERS = tuple(dict.fromkeys(answer for choices in CHOICES.values() for answer in choices))

"""Boards: bar charts, tables and pages of dense text.

========  ===================  ==============================================
task      question             answer
========  ===================  ==============================================
chart     tallest bar color ?  a colour; also *shortest*
table     table red K ?        the digit in the red row, in the column headed K
document  value of cat ?       the character beside the key CAT
========  ===================  ==============================================
"""

from __future__ import annotations

import numpy as np

from .assets import assets
from .drawing import Picture, paper, text_mask
from .scenes import Question, split_of
from .vocabulary import COLORS, DIGITS, LETTERS, LEXICON, SIZE


def make_chart(seed: int) -> tuple[Picture, list[Question]]:
    """Three to seven bars on a line, 160 x 160 px; no two heights are closer than 6 px."""
    rng = np.random.RandomState(seed ^ 0xBA55)
    canvas = paper(split_of(seed), rng, SIZE)
    number = int(rng.randint(3, 8))
    colors = [list(COLORS)[i] for i in rng.permutation(len(COLORS))[:number]]
    heights = 14 + 6 * rng.permutation(20)[:number] + rng.randint(0, 1 + 2, 1)
    pitch = (SIZE - 12) // number
    bottom = SIZE - int(rng.randint(4, 16))
    for level in range(bottom - 120, bottom, 30):
        canvas.pixels[max(level, 0), 4:-4] -= 40
    canvas.pixels[bottom : bottom + 2, 4:-4] = 50
    for i, (color, height) in enumerate(zip(colors, heights.tolist(), strict=True)):
        canvas.bar(color, pitch * int(rng.randint(5, 9)) // 10, height, (6 + i * pitch, bottom - height))
    order = np.argsort(heights)
    everything = tuple(range(number))
    questions = [
        Question("chart", f"{name} bar color ?", colors[i], (int(i),), everything)
        for name, i in (("tallest", order[-1]), ("shortest", order[0]))
    ]
    return canvas.finish(), questions


def make_table(seed: int) -> tuple[Picture, list[Question]]:
    """Two to four columns with a letter above, three or four rows with a coloured field before, 160 x 160 px."""
    rng = np.random.RandomState(seed ^ 0x7AB1)
    split = split_of(seed)
    canvas = paper(split, rng, SIZE)
    columns, rows = int(rng.randint(2, 5)), int(rng.randint(3, 5))
    font, size = int(rng.randint(len(assets(split).fonts))), int(rng.choice((18, 20, 22)))
    letters = [LETTERS[i] for i in rng.permutation(len(LETTERS))[:columns]]
    colors = [list(COLORS)[i] for i in rng.permutation(len(COLORS))[:rows]]
    left, top = rng.randint(2, 8, 2).tolist()
    wide, high = (150 - left) // (columns + 1), (152 - top) // (rows + 1)
    for line in range(1, rows + 1):
        canvas.pixels[top + line * high, 4:-4] -= 50
    for line in range(1, columns + 1):
        canvas.pixels[4:-4, left + line * wide] -= 50

    def put(text: str, row: int, column: int, color: str | None, link: str | None) -> int:
        ink = text_mask(split, font, text, size)
        x, y = left + column * wide + (wide - ink.shape[1]) // 2, top + row * high + (high - size) // 2
        canvas.write(ink, text, (x, y), color, link)
        return len(canvas.objects) - 1

    heads = [put(letter, 0, column, None, letter) for column, letter in enumerate(letters, 1)]
    fields = []
    for row, color in enumerate(colors, 1):
        canvas.bar(color, wide - 10, high - 10, (left + 3, top + row * high + 6))
        fields.append(len(canvas.objects) - 1)
    questions = []
    for row, color in enumerate(colors):
        for column, letter in enumerate(letters):
            digit = DIGITS[rng.randint(10)]
            entry = put(digit, row + 1, column + 1, color, letter)
            evidence = (heads[column], fields[row], entry)
            questions.append(Question("table", f"table {color} {letter} ?", digit, (entry,), evidence))
    return canvas.finish(), [questions[i] for i in rng.permutation(len(questions))]


def make_document(seed: int) -> tuple[Picture, list[Question]]:
    """Two columns of nine to twelve lines, each a word and a character, 320 x 320 px."""
    rng = np.random.RandomState(seed ^ 0xD0C5)
    split = split_of(seed)
    canvas = paper(split, rng, 2 * SIZE)
    font, size = int(rng.randint(len(assets(split).fonts))), int(rng.choice((18, 20)))
    lines = int(rng.randint(9, 13))
    words = [LEXICON[i] for i in rng.permutation(len(LEXICON))[: 2 * lines]]
    characters = (*LETTERS, *DIGITS)
    pitch = (2 * SIZE - 10) // lines
    questions = []
    for i, word in enumerate(words):
        left = SIZE * (i // lines) + int(rng.randint(5, 14))
        top = 6 + i % lines * pitch + int(rng.randint(0, max(1, pitch - size - 1)))
        value = characters[rng.randint(len(characters))]
        canvas.write(text_mask(split, font, word, size), word, (left, top))
        canvas.write(text_mask(split, font, value, size), value, (left + 88 + int(rng.randint(0, 16)), top), link=word)
        key = len(canvas.objects) - 2
        questions.append(Question("document", f"value of {word} ?", value, (key + 1,), (key, key + 1)))
    return canvas.finish(), [questions[i] for i in rng.permutation(len(questions))]

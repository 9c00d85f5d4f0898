"""Several images at once: two scenes, and short videos of four frames.

======  ===================  =============================================
task    question             answer
======  ===================  =============================================
pair    image with circle ?  first / second: the shape is in one of the two
move    move of circle ?     left / right / up / down, over the four frames
appear  appear of circle ?   first ... fourth: the frame it is first seen in
======  ===================  =============================================
"""

from __future__ import annotations

import numpy as np

from .drawing import Picture, textured
from .scenes import Question, make_scene, split_of
from .vocabulary import COLORS, DIRECTIONS, ORDINALS, SHAPES, SIZE, TEXTURES

FRAMES = 4


def make_pair(seed: int, *, simple: bool = False) -> tuple[tuple[Picture, ...], list[Question]]:
    """Two scenes of one split; the seed of the second differs in bit 19."""
    pictures = (make_scene(seed, simple=simple), make_scene(seed ^ (1 << 19), simple=simple))
    first = len(pictures[0].objects)
    questions = []
    for kind in SHAPES:
        found = [[i for i, thing in enumerate(p.objects) if thing.kind == kind] for p in pictures]
        if bool(found[0]) != bool(found[1]):
            about = tuple(found[0] or [first + i for i in found[1]])
            answer = ORDINALS[0 if found[0] else 1]
            questions.append(Question("pair", f"image with {kind} ?", answer, about, about))
    return pictures, questions


def make_video(seed: int) -> tuple[tuple[Picture, ...], list[Question]]:
    """Four frames of 160 x 160 px: two shapes move, up to two appear, one or two rest."""
    rng = np.random.RandomState(seed ^ 0x71DE0)
    still = textured(split_of(seed), rng, TEXTURES[-1] if rng.randint(2) else TEXTURES[rng.randint(len(TEXTURES) - 1)])
    kinds = [SHAPES[i] for i in rng.permutation(len(SHAPES))]
    colors = [str(rng.choice(list(COLORS))) for _ in kinds]
    frames = [still.copy() for _ in range(FRAMES)]
    where: dict[str, list[tuple[int, int]]] = {}  # (frame, index in the frame) of each shape
    questions = []
    roles = ("move", "move", "appear", "appear", "rest")[: rng.randint(3, 6)]
    plan = still.copy()  # reserves the way of a moving shape
    moves: list[tuple[str, str, str, int, int]] = []
    for role, kind, color in zip(roles, kinds, colors, strict=False):
        side = int(rng.choice((20, 23, 26)))
        direction = DIRECTIONS[rng.randint(4)]
        step = int(rng.randint(14, 23)) if role == "move" else 0
        way = step * (FRAMES - 1)
        across = direction in ("left", "right")
        corner = plan.place(side + way * across, side + way * (not across))
        if corner is None:
            continue
        start = int(rng.randint(FRAMES)) if role == "appear" else 0
        plan.bar(color, side + way * across, side + way * (not across), corner)
        moves.append((role, kind, direction, step, start))
        for number in range(start, FRAMES):
            done = step * (number if direction in ("right", "down") else FRAMES - 1 - number)
            spot = (corner[0] + done * across, corner[1] + done * (not across))
            frames[number].shape(kind, color, side, spot)
            where.setdefault(kind, []).append((number, len(frames[number].objects) - 1))
    pictures = tuple(frame.finish() for frame in frames)
    before = np.cumsum([0, *(len(picture.objects) for picture in pictures)]).tolist()
    for role, kind, direction, _, start in moves:
        about = tuple(before[number] + index for number, index in where[kind])
        if role == "move":
            questions.append(Question("move", f"move of {kind} ?", direction, (about[0], about[-1]), about))
        elif role == "appear":
            questions.append(Question("appear", f"appear of {kind} ?", ORDINALS[start], about, about))
    return pictures, questions


assert SIZE > FRAMES * 23  # a way fits into the image

"""What commands write, by one rule: nothing that is there already is lost unasked.

A command that finds its own work goes on with it where it is the same run. Anything else is refused before the work begins, and
``--overwrite`` begins anew; of a folder it takes away what such a command writes, and nothing besides.
"""

from __future__ import annotations

import json
import mimetypes
import os
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from foveate.lab.terminal import CommandError, warn

DENSE = "dense"  # the stock model among the methods of a bench
#: Methods of the demo.
SHOWN = ("stride", "random", "downsample", "tome", "visionzip", "divprune", "v2drop", "vtw", "fastv")
#: Folder of the answers of an evaluation, and what is made of them anew at the end of each run.
ANSWERS = "answers"
JSON, MARKDOWN, CURVE = MADE = ("results.json", "results.md", "accuracy.png")
_kept: list[Path] = []


def taken(path: Path, why: str = "is there already", option: str = "out") -> CommandError:
    """What to say where something stands in the way."""
    return CommandError(f"{str(path)!r} {why}: give --{option} another name, or --overwrite to begin anew")


def of_another_run(path: Path, what: str, there: object, here: object) -> CommandError:
    """What to say of a file whose run differs from this one in something."""
    return taken(path, f"is of another run, whose {what} was {_short(there)}, and now is {_short(here)}")


def check_new(option: str, path: Path, overwrite: bool) -> None:
    """Raise `CommandError` for a file that is there already, or that cannot be one."""
    if os.path.isdir(path):  # unlike Path.is_dir, also of a name that is too long
        raise CommandError(f"--{option} {str(path)!r} is a folder: name a file in it")
    if os.path.lexists(path) and not overwrite:
        raise taken(path, option=option)
    if _is_there(option, path) and not path.is_symlink() and not takes_more(path):
        raise CommandError(f"--{option} {str(path)!r} may not be written over: give another name")
    check_folder(option, path.parent)


def check_no_media(option: str, path: Path, such_as: str) -> None:
    """Raise `CommandError` for text that would go into a picture, a video or a sound: more likely it is a question's."""
    kind = (mimetypes.guess_type(path.name)[0] or "").partition("/")[0]
    if kind in ("image", "video", "audio"):
        raise CommandError(f"--{option} {str(path)!r} is named as {kind}s are: give a name such as {such_as}")


def check_made(folder: Path, overwrite: bool, files: Iterable[str] = MADE, kept: str = ANSWERS) -> None:
    """Raise `CommandError` for files that a run makes at its end, where what it keeps is not there: they are another's."""
    if overwrite:
        return
    if kept == ANSWERS and os.path.isdir(folder / kept):
        check_folder("out", folder / kept)
    elif kept == ANSWERS and os.path.lexists(folder / kept):
        raise CommandError(f"{str(folder / kept)!r} is a file, where a folder is to be: give --out another name")
    for path in [folder / name for name in files]:
        if os.path.isdir(path):
            raise CommandError(f"{str(path)!r} is a folder, where a file is to be written: give --out another name")
        if os.path.lexists(path) and not os.path.exists(folder / kept):
            raise taken(path, f"is there already, without its {kept.partition('.')[0]}")
        if os.path.isfile(path) and not takes_more(path):
            raise CommandError(f"{str(path)!r} may not be written over: give --out another name")


def overlay_files(folder: Path, images: Sequence[Path], methods: Sequence[str]) -> list[Path]:
    """The pictures of surviving patches that ``foveate run`` writes with a sum of methods: one of each image."""
    name = "+".join(methods)
    return [folder / f"{number:02d}-{image.stem}-{name}.png" for number, image in enumerate(images, start=1)]


def demo_pictures(folder: Path, scenes: int) -> list[Path]:
    """The pictures that ``foveate demo`` writes."""
    return [demo_picture(folder, scene, name) for scene in range(scenes) for name in (*SHOWN, "all")]


def demo_picture(folder: Path, scene: int, name: str) -> Path:
    """That of a method on a scene, counted from 0; ``all``: of all methods."""
    return folder / f"image-{scene + 1:02d}-{name}.png"


def check_folder(option: str, folder: Path) -> None:
    """Raise `CommandError` for a folder that is a file, or that takes no files: better before a long run than in it."""
    there = next(path for path in (folder, *folder.absolute().parents) if _is_there(option, path))
    if not there.is_dir():
        raise CommandError(f"--{option} {str(folder)!r}: {str(there)!r} is a file; give the name of a folder")
    if not takes_files(there):
        raise CommandError(f"--{option} {str(folder)!r}: nothing can be written to {str(there)!r}; give another folder")


def takes_files(folder: Path) -> bool:
    """Whether files can be made in a folder that is there: tried, as no question of permission tells it of every place."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:  # /proc, for one, where an administrator has all permissions
        return False


def takes_more(path: Path) -> bool:
    """Whether a file that is there can be written to; it is left as it is."""
    if not path.is_file():  # a pipe would wait for somebody who reads it
        return os.access(path, os.W_OK)
    try:
        with path.open("r+b"):
            return True
    except OSError:
        return False


def place_now(path: Path, overwrite: bool) -> Path:
    """Where a result goes whose place was free when the run began: beside what somebody else has put there meanwhile."""
    number, free = 1, path
    while os.path.lexists(free) and not overwrite:
        number += 1
        free = path.with_name(f"{path.stem}-{number}{path.suffix}")
    if free != path:
        warn(f"{str(path)!r} was written meanwhile, by somebody else: this goes into {str(free)!r}")
    return free


def keeps(path: Path) -> None:
    """Note that a run has work of its own on the disk, with which the same command goes on."""
    if path not in _kept:
        _kept.append(path)


def is_kept() -> bool:
    """Whether anything was noted by `keeps`."""
    return bool(_kept)


def holds_anything(folder: Path) -> bool:
    """Whether something is there that is not an empty folder."""
    return folder.exists() and (not folder.is_dir() or any(folder.iterdir()))


def clear(folder: Path, patterns: Iterable[str]) -> None:
    """Take away what a command wrote into its folder."""
    try:
        for path in [path for pattern in patterns for path in folder.glob(pattern)]:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    except OSError as error:
        raise CommandError(f"cannot begin anew in {str(folder)!r}: {error}") from None


def _short(value: object) -> str:
    """A value as JSON; of methods by their labels, these alone."""
    text = ", ".join(value) if isinstance(value, dict) and DENSE in value else json.dumps(value)
    return text if len(text) <= 200 else text[:197] + "..."


def _is_there(option: str, path: Path) -> bool:
    try:
        path.lstat()
    except FileNotFoundError:
        return False
    except NotADirectoryError:  # below a file
        return False
    except OSError as error:  # a name that is too long
        raise CommandError(f"--{option} {str(path)[:80]!r} is no name for a file: {error.strerror}") from None
    return True

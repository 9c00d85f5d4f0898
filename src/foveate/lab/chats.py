"""Questions about images and videos as chats that any processor of transformers takes; lmms-eval hands over the same.

An image is whatever `transformers` can open (a PIL image, a path, an address), or what a dataset keeps of it; a video is
a path, or a mapping that says which part of it. Videos are decoded here, with PyAV: processors want torchcodec for that.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from transformers.image_utils import load_image
from transformers.video_utils import load_video

from foveate.errors import InputError, first_line

IMAGES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp"}
SOUNDS = {".wav", ".mp3", ".m4a", ".aac", ".flac", ".ogg", ".opus"}
_BROKEN = (OSError, ValueError, TypeError, IndexError, ImportError, SyntaxError)


@dataclass(frozen=True)
class Frames:
    """Which frames of a video are shown.

    Attributes:
        most: no more than this many, evenly spread.
        fps: frames per second of the video; None: as many as ``most`` allows.
    """

    most: int = 32
    fps: float | None = None


@dataclass
class Chat:
    """One conversation.

    Attributes:
        messages: as `apply_chat_template` takes them, images and decoded videos in their places.
        films: what must be known of each video to place it in time, in the order of ``messages``.
        name: of the question, for messages about it.
    """

    messages: list[dict[str, Any]]
    films: list[dict[str, Any]] = field(default_factory=list)
    name: str = ""

    @property
    def media(self) -> tuple[bool, bool]:
        """Whether there are images, and videos: processors want rows that are alike in this."""
        kinds = {part["type"] for message in self.messages for part in message["content"]}
        return "image" in kinds, "video" in kinds

    def digest(self) -> bytes:
        """SHA-256 of every word and pixel."""
        digest = hashlib.sha256()
        for message in self.messages:
            digest.update(message["role"].encode())
            for part in message["content"]:
                what = part[part["type"]]
                digest.update(what.encode() if isinstance(what, str) else np.asarray(what).tobytes())
        return digest.digest()


def chat(messages: Sequence[Mapping[str, Any]], frames: Frames, system: str | None = None) -> Chat:
    """A conversation from ``[{"role", "content": [{"type", "text" or "url"}]}]``.

    Raises:
        InputError: a part is neither text nor something to look at, or cannot be read.
    """
    made = Chat([{"role": "system", "content": [{"type": "text", "text": system}]}] if system else [])
    for message in messages:
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        made.messages.append({"role": message["role"], "content": [_part(part, frames, made.films) for part in parts]})
    return made


def question(visuals: Sequence[Any] | None, text: str) -> list[dict[str, Any]]:
    """A single user's message, what is seen first; of several frames of a video or lists of images, all."""
    return [{"role": "user", "content": [*map(_seen, _flat(visuals)), {"type": "text", "text": text}]}]


def _flat(visuals: Any) -> list[Any]:
    if visuals is None:
        return []
    return [each for part in visuals for each in (part if isinstance(part, list) else [part])]


def _seen(visual: Any) -> dict[str, Any]:
    kind = "image"
    if isinstance(visual, Mapping) and not {"bytes", "array"} & set(visual):
        kind = str(visual.get("type", "video"))
    elif isinstance(visual, Mapping) and "array" in visual:
        kind = "audio"
    elif isinstance(visual, (str, Path)):
        suffix = Path(visual).suffix.lower()
        kind = "image" if suffix in IMAGES else "audio" if suffix in SOUNDS else "video"
    return {"type": kind, "url": visual}


def _part(part: Mapping[str, Any], frames: Frames, films: list[dict[str, Any]]) -> dict[str, Any]:
    kind = part.get("type")
    if kind == "text":
        return {"type": "text", "text": part["text"]}
    if kind not in ("image", "video"):
        raise InputError(f"a question has a part of type {kind!r}; only text, images and videos can be asked about")
    source = part.get("url", part.get(str(kind)))
    try:
        if kind == "image":
            return {"type": "image", "image": _image(source)}
        start, end = part.get("start_time"), part.get("end_time")
        if isinstance(source, Mapping):
            start, end = source.get("video_start", start), source.get("video_end", end)
            source = next((source[name] for name in ("url", "path", "video") if source.get(name)), None)
        video, film = _video(source, frames, start, end)
    except Exception as error:
        if not isinstance(error, _BROKEN) and "://" not in str(
            source
        ):  # what a library for addresses raises is its own
            raise
        raise InputError(f"the {kind} {_named(source)} cannot be read: {first_line(error)}") from None
    films.append(film)
    return {"type": "video", "video": video}


def _image(source: Any) -> Image.Image:
    if isinstance(source, Mapping):  # of a dataset that does not decode
        source = BytesIO(source["bytes"]) if source.get("bytes") else source.get("path")
    if isinstance(source, np.ndarray):
        source = Image.fromarray(source)
    if isinstance(source, BytesIO):
        source = Image.open(source)
    if source is None:
        raise ValueError("there is none")
    if isinstance(source, (str, Path)) and _is_path(str(source)) and not Path(source).is_file():
        raise ValueError("there is no such file")  # transformers would take it for base64
    return load_image(str(source) if isinstance(source, Path) else source).convert("RGB")


def _is_path(text: str) -> bool:
    return "://" not in text and Path(text).suffix.lower() in IMAGES


def _video(source: Any, frames: Frames, start: float | None, end: float | None) -> tuple[Any, dict[str, Any]]:
    """Frames ``(T, H, W, 3)``, and what is known of them."""
    if not isinstance(source, (str, Path)):
        raise ValueError("give a path or an address")

    def chosen(metadata: Any, **_: Any) -> Any:
        total, fps = int(metadata.total_num_frames), float(metadata.fps or 24)
        first = min(int((start or 0) * fps), total - 1)
        last = total - 1 if end is None else max(first, min(int(end * fps), total - 1))
        wanted = frames.most if frames.fps is None else max(1, round((last - first + 1) / fps * frames.fps))
        return np.linspace(first, last, min(wanted, frames.most, last - first + 1)).round().astype(int)

    path: Any = str(source)
    video, metadata = load_video(path, backend="pyav", sample_indices_fn=chosen)
    return video, asdict(metadata)


def _named(source: Any) -> str:
    return repr(str(source)) if isinstance(source, (str, Path)) else f"({type(source).__name__})"

"""A family file, as far as a call of a tiny model tells it: ``foveate families --inspect``."""

from __future__ import annotations

import json
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoConfig

from foveate.errors import InputError, UnsupportedModelError, first_line
from foveate.lab.inspection import decoder, joints, spies, tiny, tower, trial
from foveate.models.family import Decoder, Family, Tower

Facts = dict[str, Any]
#: fields that are functions: what they give in the trial, in words
SAID = {
    "unit": "lambda config: ...,  # {value} here",
    "last_block": "lambda config: ...,  # {value} here",
    "kept_rows": "lambda config: ...,  # {value} here",
    "grid": "...,  # {value} for the images of the trial",
    "resize": "...,  # the tower takes other sizes",
    "segments": "...,  # images, or windows of them, are attention segments of their own",
    "order": "...,  # the blocks see the rows window by window",
    "merger": "...,  # {value!r} makes fewer rows between two blocks",
    "arrangements": "...,  # {value}: there are other features than one a token",
    "recurrence": "...,  # FLOPs of its products",
}


@dataclass(frozen=True)
class Proposal:
    """What was found out about a model type.

    Attributes:
        model_type: its name.
        family, tower, decoder: facts by field, of `Family`, `Tower` and `Decoder`; of functions, what they give in the trial.
        unknown: fields that a call cannot tell.
        config: the tiny config.
        call: arguments of the spied call of the tower.
    """

    model_type: str
    family: Facts
    tower: Facts
    decoder: Facts
    unknown: tuple[str, ...]
    config: Any
    call: tuple[tuple[Any, ...], dict[str, Any]]

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        facts = {"family": self.family, "tower": self.tower, "decoder": self.decoder}
        return {
            "model_type": self.model_type,
            **json.loads(json.dumps(facts, default=str)),
            "unknown": list(self.unknown),
        }

    def __str__(self) -> str:
        spec = _lines("decoder", "Decoder", self.decoder, Decoder) if differs(self.decoder, Decoder) else []
        lines = ["FAMILY = Family(", f"    model_type={self.model_type!r},", *_fields(self.family, Family, 4)]
        lines += [*_lines("tower", "Tower", self.tower, Tower), *spec, ")"]
        lines += ["", "# What a call cannot tell, so look it up where it may matter: " + ", ".join(self.unknown)]
        return "\n".join(lines)


def inspect(name: str) -> Proposal:
    """Find out about a model type, a config file or a folder with one.

    Raises:
        InputError, UnsupportedModelError: what cannot be told, and what it would take.
    """
    return inspect_config(_config(name))


def inspect_config(config: Any) -> Proposal:
    """The same of the config of a tiny model."""
    model = tiny.model_of(config)
    path, base = trial.base_of(model)
    prefix = f"{path}." if path else ""
    found = trial.find(config, base)
    with torch.no_grad():
        count = len(trial.features(base, found))
    given = trial.prompt(config, model, found, count)
    with spies.listening(model, base) as notes:
        try:
            model(**given)
        except Exception as error:  # stock code says in many ways what it misses
            raise UnsupportedModelError(
                f"{type(model).__name__} takes the images, but not the prompt around them ({type(error).__name__}: "
                f"{str(error)[:200]}): see what its processor gives besides"
            ) from error
    vision = tower.look(notes, found, prefix)
    of_tower, unknown = tower.facts(vision, base)
    of_tower |= joints.facts(vision)
    whole = next(call for call in notes.calls if call.path == f"{prefix}{of_tower['module']}")
    return Proposal(
        config.model_type,
        _of_family(config, path),
        of_tower,
        decoder.facts(notes, prefix, config),
        ("frames", *unknown),
        config,
        (whole.args, whole.kwargs),
    )


def _config(name: str) -> Any:
    """The tiny config of a type, or of the model whose config is in a file or folder."""
    place = Path(name)
    if not place.exists():
        return tiny.config_of(name)
    file = place / "config.json" if place.is_dir() else place
    try:
        said = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{name} has no config that can be read: {error}") from None
    kind = said.get("model_type") if isinstance(said, dict) else None
    if not isinstance(kind, str):
        raise InputError(f"{name} says no model_type: give the config.json of a model, or a model type")
    if "auto_map" in said and kind not in CONFIG_MAPPING:
        raise UnsupportedModelError(
            f"{name} is a model with code of its own (auto_map), which is not run here: foveate knows models of transformers"
        )
    if kind not in CONFIG_MAPPING:
        raise UnsupportedModelError(f"{name} says model_type={kind!r}, which this transformers does not know")
    tiny.config_of(kind)  # says what it is not
    try:
        config = AutoConfig.for_model(**said)
    except Exception as error:  # whatever a config class says of fields that are not as it wants them
        raise InputError(
            f"{name} is no config of a {kind!r} ({type(error).__name__}: {first_line(error)}): mend it"
        ) from error
    return tiny.shrunk(config)


def _of_family(config: Any, path: str) -> Facts:
    """Facts of `Family`."""
    found: Facts = {"base": path}
    package = type(config).__module__.rpartition(".")[0]
    vision = config.vision_config
    if type(vision).__module__.rpartition(".")[0] != package:
        found["tower_type"] = vision.model_type
    if getattr(config, "video_token_id", None) is not None:
        found["modalities"] = {"pixel_values": "image_token_id", "pixel_values_videos": "video_token_id"}
    return found


def default(spec: type, name: str) -> Any:
    """What a field is where a family does not say it; `MISSING` where it must."""
    field = next(each for each in fields(spec) if each.name == name)
    return field.default_factory() if field.default_factory is not MISSING else field.default


def differs(facts: Facts, spec: type) -> dict[str, Any]:
    """The facts that a family has to say."""
    own: dict[str, Any] = {}
    for name, value in facts.items():
        usual = default(spec, name)
        if callable(usual) or usual is MISSING or usual is None or name == "arrangements":
            if name == "resize" or value not in (False, 0, None):
                own[name] = value or None
        elif value != usual:
            own[name] = value
    return own


def _fields(facts: Facts, spec: type, indent: int) -> list[str]:
    return [
        " " * indent + (f"{name}={SAID[name].format(value=value)}" if name in SAID and value else f"{name}={value!r},")
        for name, value in differs(facts, spec).items()
    ]


def _lines(field: str, name: str, facts: Facts, spec: type) -> list[str]:
    return [f"    {field}={name}(", *_fields(facts, spec, 8), "    ),"]

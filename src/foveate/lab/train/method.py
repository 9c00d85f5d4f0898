"""``foveate train METHOD``: a model and data by name, a folder with a record, and a run that goes on where it stopped."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from foveate import adapter, trained
from foveate.errors import first_line
from foveate.lab import needs, outputs
from foveate.lab.checks import REFERENCES, is_run
from foveate.lab.devices import device_of
from foveate.lab.loading import load
from foveate.lab.speech import speech_of
from foveate.lab.terminal import CommandError
from foveate.method import Method
from foveate.serialise import from_json
from foveate.training import card, data
from foveate.training.recipe import Recipe
from foveate.training.run import Plan, Run, Trained, check_method, require

#: What a run is and has done; a run that goes on must be the same.
RECORD = "foveate_training.json"
#: All that a run leaves in its folder.
WRITTEN = (RECORD, trained.METHOD, trained.MODULES, trained.CHECKPOINTS, *adapter.FILES, card.FILE)

REFERENCE = "reference"


@dataclass(frozen=True)
class Request:
    """What to train.

    Attributes:
        out: folder for what is trained, its method, the record and the checkpoints.
        method: what is trained for.
        model: a folder, a hub id, or the name of a reference model (``reference``).
        source: the data, ``reference`` or as `foveate.training.data.load` takes it; ``split`` and ``samples`` belong to it.
        curriculum: see `Curriculum.parse`; None: the method's own.
        recipe: how.
        seed: of data order, first weights and dropout.
        dtype, device: as `foveate run` takes them.
    """

    out: Path
    method: Method
    model: str = "reference"
    source: str = REFERENCE
    split: str = "train"
    samples: int | None = None
    curriculum: str | None = None
    recipe: Recipe = field(default_factory=Recipe)
    seed: int = 0
    dtype: str = "auto"
    device: str = "auto"


def train(request: Request, overwrite: bool, tell: Callable[[str], None]) -> Trained:
    """Train, or go on training from the last checkpoint. ``tell`` gets a line before each step that may take long."""
    method = request.method
    check_method(method)
    record = _described(request)
    goes_on = not overwrite and _is_begun(request.out, record)
    if goes_on and (finished := _finished(request.out)):
        tell(f"{str(request.out)!r} is finished")
        return finished
    require(request.recipe.gradient_checkpointing)
    device = device_of(request.device)
    tell(f"loading {request.model}")
    model, processor = load(request.model, request.dtype)
    tell(f"reading {request.source}")
    chats = _chats(request, model, processor)
    bf16 = request.dtype == "bfloat16"
    plan = Plan(request.out, request.model, method, request.curriculum, request.recipe, request.seed, device, bf16)
    run = Run(model, processor, chats, plan, tell)
    tell(f"training {method!r}")
    if run.is_main:
        if overwrite:
            outputs.clear(request.out, WRITTEN)
        _write(request.out, record)
    try:
        found = run.train(goes_on)
    except KeyboardInterrupt:
        if any((request.out / trained.CHECKPOINTS).glob("*")):
            outputs.keeps(request.out)
        raise
    if run.is_main:
        done = {name: getattr(found, name) for name in ("steps", "losses", "stages", "agreement")}
        _write(request.out, {**record, **done})
    return found


def is_main() -> bool:
    """Tell whether this process speaks, of several that were launched together."""
    return os.environ.get("RANK", "0") == "0"


def to_dict(found: Trained) -> dict[str, Any]:
    """Plain data."""
    return {
        "folder": str(found.folder),
        "steps": found.steps,
        "losses": list(found.losses),
        "stages": [{"step": step, "keep": keep} for step, keep in found.stages],
        "agreement": list(found.agreement),
    }


def show(found: Trained, console: Console) -> None:
    """For a person."""
    for step, keep in found.stages:
        console.print(f"from step {step:5}  {keep:.1%} of the visual tokens kept")
    if found.losses:
        console.print(f"{found.steps} steps, loss {found.losses[0]:.3f} to {found.losses[-1]:.3f}")
    if found.agreement:
        first, last = found.agreement[0], found.agreement[-1]
        said = f"of the soft gates {first:.1%}, then {last:.1%} were at tokens that the hard choice keeps"
        console.print(said, soft_wrap=True)
    console.print(f'foveate.compress(model, "{found.folder}") attaches it', markup=False, soft_wrap=True)


def _chats(request: Request, model: Any, processor: Any) -> data.Chats:
    if request.source != REFERENCE:
        return data.load(request.source, request.split, request.samples, request.seed)
    needs.reference()
    from foveate.lab.train import exhibits

    ours = request.model in REFERENCES or is_run(request.model)
    tile = int(getattr(model.config.vision_config, "image_size", 0)) if ours else 0
    return exhibits.load(request.split, request.samples, request.seed, tile, speech_of(processor))


def _described(request: Request) -> dict[str, Any]:
    """What the run is, as plain data."""
    names = ("model", "source", "split", "samples", "curriculum", "seed", "dtype")
    return {
        **{name: getattr(request, name) for name in names},
        "method": request.method.to_dict(),
        "recipe": asdict(request.recipe),
    }


def _is_begun(out: Path, described: dict[str, Any]) -> bool:
    """Whether this very run has begun in the folder. Raise `CommandError` if anything else is there."""
    if not (out / RECORD).is_file():
        if outputs.holds_anything(out):
            raise outputs.taken(out)
        return False
    try:
        before = from_json((out / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CommandError(f"cannot read {str(out / RECORD)!r}: {first_line(error)}") from None
    if not isinstance(before, dict):
        raise outputs.taken(out / RECORD, "is not the record of a run")
    for name, value in described.items():
        if before.get(name) != json.loads(json.dumps(value)):
            was, now = json.dumps(before.get(name)), json.dumps(value)
            raise outputs.taken(out, f"is of another run, whose {name} was {was}, and now is {now}")
    return True


def _finished(out: Path) -> Trained | None:
    """What the run in a folder came to, if it has ended."""
    record = from_json((out / RECORD).read_text(encoding="utf-8"))
    if "losses" not in record or not trained.is_whole(out):
        return None
    try:
        stages = tuple((int(step), float(keep)) for step, keep in record["stages"])
        agreement = tuple(map(float, record["agreement"]))
        return Trained(out, int(record["steps"]), tuple(record["losses"]), stages, agreement)
    except (KeyError, ValueError, TypeError):
        raise outputs.taken(out / RECORD, "is not the record of a run that has ended") from None


def _write(out: Path, record: dict[str, Any]) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise CommandError(f"cannot write to {str(out)!r}: {error}") from None

"""Checkpoints of a training run: parameters and optimisers as safetensors, and what run it is of as JSON in the header."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torch.optim import Optimizer


def save(
    path: Path, parameters: Mapping[str, nn.Parameter], optimisers: Sequence[Optimizer], state: dict[str, Any]
) -> None:
    """Write a checkpoint; one that was there stays whole until then.

    Parameters
    ----------
    path : Path
    parameters : mapping from str to Parameter
        What is learnt, by name.
    optimisers : sequence of Optimizer
        Their states of these parameters are kept, too.
    state : dict
        Plain data: how far the run is, its seed and its configuration.
    """
    tensors = {f"parameter/{name}": p.detach() for name, p in parameters.items()}
    for optimiser in optimisers:
        for name, p in parameters.items():
            for key, value in optimiser.state.get(p, {}).items():
                tensors[f"{key}/{name}"] = value
    partial = path.with_suffix(".partial")
    save_file(tensors, partial, {"state": json.dumps(state)})
    os.replace(partial, path)


def load(
    path: Path, parameters: Mapping[str, nn.Parameter], optimiser_of: Callable[[str], Optimizer], wanted: dict[str, Any]
) -> dict[str, Any]:
    """Take over a checkpoint and return its state.

    Parameters
    ----------
    path : Path
    parameters : mapping from str to Parameter
        By the names they were saved under.
    optimiser_of : callable
        The optimiser that a kind of state belongs to, such as ``"exp_avg"``.
    wanted : dict
        What the state must say of the run.

    Raises
    ------
    ValueError
        Where it is of another run.
    """
    with safe_open(path, "pt") as file:
        state: dict[str, Any] = json.loads(file.metadata()["state"])
        if {key: state[key] for key in wanted} != wanted:
            raise ValueError(f"{path} is from another run: {state}; this one is {wanted}")
        for key in file.keys():  # noqa: SIM118 - not a dict
            kind, name = key.split("/")
            p, value = parameters[name], file.get_tensor(key)
            if kind == "parameter":
                p.data.copy_(value)
            else:
                optimiser_of(kind).state[p][kind] = value if kind == "step" else value.to(p.device)
    return state

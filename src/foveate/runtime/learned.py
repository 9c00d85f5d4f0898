"""Learned parts of methods: made once for each handle, and kept where the modules are beside which they work.

They belong to the handle, not to the model: the model's own parameters and files stay what they were.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator, Sequence

import torch
from torch import nn

from foveate.errors import ConfigError, UnsupportedSiteError
from foveate.method import Host, Method, Site
from foveate.sums import Composed

Place = tuple[torch.device, torch.dtype]
_KINDS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)  # that modules can have: no quantised ones


def part_names(method: Method) -> list[str]:
    """Return a name for each part of a sum, under which its learned parts are kept: ``scorer``, ``merger``, ``scorer_2``."""
    met: Counter[str] = Counter()
    names = []
    for part in method.parts():
        name = part.name().replace(".", "_")  # a dot separates the names of modules
        met[name] += 1
        names.append(name if met[name] == 1 else f"{name}_{met[name]}")
    return names


def with_modules(method: Method, host: Host) -> tuple[Method, nn.ModuleDict]:
    """Give a method learned parts of its own; also return them, by the name of the part of the sum.

    They are the same each time, as long as nobody has trained them: whatever random numbers they begin with are drawn anew.
    """
    parts, all_modules = [], nn.ModuleDict()
    for name, part in zip(part_names(method), method.parts()):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            modules = part.modules(host)
        if modules is not None and not isinstance(modules, nn.ModuleDict):
            raise ConfigError(
                f"{part.name()}.modules returned {type(modules).__name__}, expected an nn.ModuleDict, or None if there are none"
            )
        if modules is not None:
            part = copy.copy(part)
            vars(part)["_learned"] = all_modules[name] = modules
        parts.append(part)
    return (Composed(tuple(parts)) if len(parts) > 1 else parts[0]), all_modules


class Beside:
    """The learned parts of one method, kept on the device and in the dtype of a module of the model, and trained when it is.

    Args:
        name: of the method.
        modules: its learned parts.
        neighbours: the site that they work at, and the module of the model there, for each.
    """

    def __init__(self, name: str, modules: nn.ModuleDict, neighbours: Sequence[tuple[Site, nn.Module]]) -> None:
        self.modules, self.neighbour = modules, neighbours[0][1]
        self.place = place_of(self.neighbour)
        for site, module in neighbours:
            if place_of(module)[0] != self.place[0]:
                raise UnsupportedSiteError(
                    f"{name} has learned parts, which are on one device, but at {neighbours[0][0]} the model is on "
                    f"{self.place[0]} and at {site} on {place_of(module)[0]}: give it sites on one device, or the "
                    "model another device_map"
                )
        modules.to(*self.place)

    def follow(self) -> None:
        """Go where the model went since the last call, with ``model.to`` or ``model.train``; all else is left as it is."""
        place = place_of(self.neighbour)
        if place != self.place:
            self.modules.to(*place)
            self.place = place
        if self.modules.training != self.neighbour.training:
            self.modules.train(self.neighbour.training)


def place_of(module: nn.Module) -> Place:
    """Where a module runs, and in which dtype."""
    tensors = [x for x in module.parameters() if x.dtype in _KINDS]
    if not tensors:
        return torch.device("cpu"), torch.get_default_dtype()
    device = tensors[0].device
    if device.type == "meta":  # offloaded weights come when they are needed
        device = next(_devices(module), device)
    return device, tensors[0].dtype


def _devices(module: nn.Module) -> Iterator[torch.device]:
    """Tell where accelerate's hooks bring the weights of a module."""
    for child in module.modules():
        hook = getattr(child, "_hf_hook", None)
        for each in getattr(hook, "hooks", [hook]):
            device = getattr(each, "execution_device", None)
            if device is not None:
                yield torch.device(device)

"""What a method's own decisions cost, as a share of the decoder layers that they shorten, at the widths of models of 7B.

    python benchmarks/selector_cost.py [--json FILE] [--tokens 1024 --tokens 4096] [--method divprune] [--threads 1]

Every method of the registry, with its default options, is asked at all of its sites of one prompt, of images or of a video:
scores, selection, merging, and what brings parked tokens back; not the gathers of the runtime, nor the signals, which are
attention and hidden states of the right shapes and random values; learned parts are new ones. A site gets the tokens that the
one before it has left. The time of the stock model is that of one decoder layer with random weights, at all tokens of the
prompt, times the number of layers. Hidden states and weights are bfloat16 where the CPU has the instructions for it, which
makes a layer more than twice as fast: the harder comparison. Elsewhere bfloat16 is many times slower than float32, so all is
in float32.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import foveate
from foveate import Method
from foveate.errors import FoveateError
from foveate.handle import host_of
from foveate.lab.bench import shapes
from foveate.lab.bench.result import machine
from foveate.lab.bench.workload import Shaped
from foveate.models import family_of
from foveate.runtime.attach import plan
from foveate.runtime.context import Action
from foveate.runtime.layout import frames, tokens_of
from foveate.runtime.learned import with_modules
from foveate.runtime.signals.kind import Kind
from foveate.site import Host
from foveate.tokens import Parked, Reduction, Spans, Tokens

MODELS = ("qwen2.5-vl-7b", "llava-1.5-7b")
TEXT = 32
REPEATS, ENOUGH = 3, 1.0  # of a walk, and the seconds after which it is not repeated
FRAMES = 16  # of a video
DTYPE = torch.bfloat16 if torch.ops.mkldnn._is_mkldnn_bf16_supported() else torch.float32


class Noise:
    """Random numbers of any shape, without drawing them anew."""

    def __init__(self, most: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self._normal = torch.randn(most, generator=generator).to(DTYPE)
        self._share = torch.rand(most, generator=generator).to(DTYPE)

    @property
    def tensors(self) -> list[Tensor]:
        """What all random numbers are taken from."""
        return [self._normal, self._share]

    def states(self, *shape: int) -> Tensor:
        """As hidden states, keys and values are: around zero."""
        return self._normal[: prod(shape)].view(shape)

    def shares(self, *shape: int) -> Tensor:
        """As attention is: not below zero."""
        return self._share[: prod(shape)].view(shape)


@dataclass
class Model:
    """A model of which only the config is there.

    Attributes:
        name, config: of the shape.
        host: what methods know of it.
    """

    name: str
    config: Any = field(init=False)
    host: Host = field(init=False)

    def __post_init__(self) -> None:
        skeleton: Any = shapes.skeleton(self.name)
        self.config = skeleton.config
        self.host = host_of(skeleton)

    @property
    def unit(self) -> int:
        """Patches of a token in the tower."""
        return family_of(self.config).tower.unit(self.config)

    @property
    def pixels(self) -> int:
        """Values of colour in the patches of a token."""
        return self.unit * 3 * int(self.config.vision_config.patch_size) ** 2

    @property
    def widest(self) -> int:
        """Of a token, the most numbers that a signal has."""
        return max(self.host.width, self.host.tower_width, self.pixels)

    def layout(self, tokens: int) -> Spans:
        """Images of about so many tokens together."""
        layout = Shaped(self.config).layout(tokens)
        return frames([(1, *layout.size)] * layout.images, rows=[0] * layout.images)

    def clip(self, tokens: int) -> Spans | None:
        """A video of about so many tokens; None: the model takes images of one size alone."""
        shaped = Shaped(self.config)
        return None if shaped.side else frames([(FRAMES, *shaped.layout(tokens // FRAMES).size)])

    def signal(
        self, kind: Kind, n: int, noise: Noise, tower: bool, patch: bool, samples: int = 1, appended: int = 0
    ) -> Tensor:
        """A signal of ``n`` tokens of so many prompts, in the shape that its kind says it has in this model."""
        signal, text, vision = kind.signal, self.config.get_text_config(), self.config.vision_config
        side = vision if tower else text
        heads = int(getattr(side, "num_attention_heads", 0) or side.num_heads)
        width = self.width(tower or signal.at == "tower", patch)
        rows = {"text": TEXT * samples, "cls": 1, "appended": appended}.get(signal.of, n)
        if kind.name in ("hidden", "residual"):
            return noise.states(rows, width)
        if kind.name in ("text", "text_pass"):
            return noise.states(TEXT * samples, self.host.width)
        if kind.name in ("keys", "queries", "values"):
            own = heads if tower else text.num_key_value_heads
            return noise.states(rows, own, width // heads)
        if kind.name in ("last_row", "next_row", "unrotated_row", "cls_row"):
            return noise.shares(n, heads)
        if kind.name in ("text_rows", "next_rows"):
            return noise.shares(n, heads, TEXT // 2) if signal.heads else noise.shares(n, TEXT // 2)
        if kind.name == "received":
            return noise.shares(n)
        if kind.name == "rope":
            return noise.states(n, 2, width // heads)
        if kind.name == "text_place":
            return torch.arange(TEXT - TEXT // 2, TEXT) + TEXT * torch.arange(samples)[:, None]
        if kind.name == "patches":
            return noise.states(n, self.pixels)
        return kind.made_up(lambda *shape: noise.shares(n, *shape))

    def width(self, tower: bool, patch: bool = False) -> int:
        """Channels of a token."""
        if not tower:
            return self.host.width
        return self.host.tower_width // (self.unit if patch else 1)


class Walk:
    """One method at all sites of a prompt, one after another, with a clock on what the method does itself."""

    def __init__(self, model: Model, method: Method, spans: Spans, noise: Noise) -> None:
        self.model, self.spans, self.noise = model, spans, noise
        host = model.host
        method, modules = with_modules(method.resolve(host), host)
        modules.to(DTYPE)
        self.actions = plan(method, host, family_of(model.config), model.config, host.blocks, host.layers)
        self.seconds: dict[str, float] = {}
        self.left: list[int] = []  # tokens after each site that drops some
        self._states: dict[int, dict[str, Any]] = {}
        self._parked: dict[int, Parked] = {}
        self._memory: dict[int, Tensor] = {}
        self._appended = 0  # tokens

    def run(self) -> dict[str, float]:
        """Seconds by site."""
        now = tokens_of(self.spans)
        order = ("pixels", "tower", "tower_output", "lm_entry", "decoder", "cache")
        left = [action for place in order for action in self._at(place)]
        for action in left:
            if action.site.at == "cache":  # which acts on what its own layer holds
                self._ask(action, tokens_of(self.spans))
            else:
                now = self._visit(action, now)
        return self.seconds

    def _at(self, place: str) -> list[Action]:
        return sorted((each for each in self.actions if each.site.at == place), key=lambda each: each.site.layer)

    def _visit(self, action: Action, now: Tokens) -> Tokens:
        """What is there after a site."""
        site, part = action.site, action.part
        if site.action == "reuse":
            return now
        if site.action in ("attend", "restore"):
            parked = self._parked[part]
            patches = site.at.startswith("tower") and parked.tokens.hidden.shape[-1] < self.model.host.tower_width
            here = self._shown(action, now, patch=patches)
            whole = self._timed(action, lambda: action.method.restore(here, parked, site))
            assert whole.shape == parked.tokens.hidden.shape
            if site.action == "attend":
                return now
            return tokens_of(self.spans) if patches else replace(parked.tokens, hidden=torch.empty(0), signals={})
        if site.action == "inject":
            x, memory = self.noise.states(TEXT, self.model.host.width), self._memory[part]
            self._timed(action, lambda: action.method.inject(x, memory, site))
            return now
        if site.action == "park" and site.unit == "patch":
            now = tokens_of(_patches(self.spans, self.model.unit))
        answer, here = self._ask(action, now)
        if site.action == "remember":
            self._memory[part] = answer.packed()[0]
        if site.action == "append":
            self._appended = len(answer.packed()[0])
        if site.action == "park":
            self._parked[part] = Parked(here, answer.keep)
        if site.action not in ("reduce", "park"):
            return now
        reduction: Reduction = answer
        self.left.append(sum(reduction.counts))
        if reduction.shape is not None:
            return tokens_of(replace(now.spans, shape=reduction.shape))
        return replace(reduction.survivors(here), hidden=torch.empty(0))

    def _ask(self, action: Action, now: Tokens) -> tuple[Any, Tokens]:
        here = self._shown(action, now, patch=action.site.unit == "patch")
        return self._timed(action, lambda: action.ask(here)[0]), here

    def _shown(self, action: Action, now: Tokens, patch: bool) -> Tokens:
        """The tokens as the method gets them."""
        tower, n = action.site.at in ("pixels", "tower", "tower_output"), len(now)
        samples, channels = len({*self.spans.row}), self.model.config.get_text_config().intermediate_size
        signals = {
            kind.signal: self.model.signal(kind, n, self.noise, tower, patch, samples, self._appended)
            for kind in action.asks
        }
        return replace(
            now,
            hidden=self.noise.states(n, self.model.width(tower, patch)),
            signals=signals,
            text_counts=() if tower else (TEXT,) * samples,
            activations=lambda rows: self.noise.states(len(rows), channels),
            state=self._states.setdefault(action.part, {}),
        )

    def _timed(self, action: Action, call: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        out = call()
        name = f"{action.method.name()} at {action.site}"
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
        return out


def _patches(spans: Spans, unit: int) -> Spans:
    side = round(unit**0.5)
    return replace(spans, shape=tuple((side * height, side * width) for height, width in spans.shape))


def layer_seconds(model: Model, tokens: int) -> float:
    """Time of one decoder layer of the model at so many tokens."""
    config = shapes.config_of(model.name)
    text, vision = config.text_config, config.vision_config
    text.num_hidden_layers, text.vocab_size = 1, 64
    for name in ("depth", "num_hidden_layers"):
        if hasattr(vision, name):
            setattr(vision, name, 2)
    if hasattr(vision, "fullatt_block_indexes"):
        vision.fullatt_block_indexes = [1]
    config.image_token_id = 1
    whole = shapes.build(config, DTYPE, torch.device("cpu"), "sdpa", seed=0)
    language, seconds = whole.model.language_model, 0.0
    for n in (64, tokens):  # the first one warms up
        x = torch.randn(1, n, text.hidden_size, dtype=DTYPE)
        start = time.perf_counter()
        language(inputs_embeds=x, use_cache=True)
        seconds = time.perf_counter() - start
    return seconds


def measure(model: Model, spans: Spans, layer: float, methods: dict[str, Method], noise: Noise) -> dict[str, Any]:
    """Every method on one model and prompt, whose decoder layers take ``layer`` seconds each."""
    visual = sum(spans.sizes)
    whole = layer * model.host.depth
    rows: dict[str, Any] = {}
    for name, method in methods.items():
        try:
            runs = [Walk(model, method, spans, noise).run()]
            while len(runs) < REPEATS and sum(sum(run.values()) for run in runs) < ENOUGH:
                runs.append(Walk(model, method, spans, noise).run())
        except FoveateError as error:
            rows[name] = {"method": method.to_dict(), "refused": str(error)}
            continue
        sites = {site: statistics.median(run[site] for run in runs) for site in runs[0]}
        seconds = statistics.median(sum(run.values()) for run in runs)
        rows[name] = {"method": method.to_dict(), "seconds": seconds, "share": seconds / whole, "sites": sites}
        print(f"{model.name:<14} {visual:>5} {name:<14} {seconds * 1e3:9.2f} ms {seconds / whole:9.4%}", flush=True)
    return {
        "model": model.name,
        "visual": visual,
        "images": len({*spans.clip}),
        "frames": max(spans.frame) + 1,
        "layer_seconds": layer,
        "layers": model.host.depth,
        "methods": rows,
    }


def measured(model: Model, tokens: int, methods: dict[str, Method], noise: Noise) -> Iterator[dict[str, Any]]:
    """Every method on one model at one size: images, and a video where there are any."""
    layout, clip = model.layout(tokens), model.clip(tokens)
    layer = layer_seconds(model, sum(layout.sizes) + TEXT)
    for spans in filter(None, (layout, clip)):
        yield measure(model, spans, layer, methods, noise)


def chosen(names: list[str]) -> Iterator[tuple[str, Method]]:
    """Methods of the registry, with their default options."""
    for name, cls in foveate.list_methods().items():
        if name in (names or [name]):
            yield name, cls()


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--tokens", type=int, action="append", help="visual tokens, about; by default 1024 and 4096")
    parser.add_argument("--method", action="append", help="by name; by default all")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    methods, sizes = dict(chosen(options.method or [])), options.tokens or [1024, 4096]
    models = [Model(name) for name in MODELS]
    noise = Noise(max(4096, *sizes) * 5 // 4 * max(model.widest for model in models))
    runs = [run for model in models for n in sizes for run in measured(model, n, methods, noise)]
    if options.json:
        found = {
            "machine": machine(torch.device("cpu")),
            "text": TEXT,
            "dtype": str(DTYPE).removeprefix("torch."),
            "runs": runs,
        }
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()

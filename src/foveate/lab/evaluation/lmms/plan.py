"""What is run: the stock model, each method, and `Downsample` at what each method spends."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from foveate.dial import TOLERANCE, Dial
from foveate.errors import FoveateError
from foveate.handle import compress, host_of
from foveate.lab.checks import DENSE, check_dtype
from foveate.lab.evaluation.asking import Cost
from foveate.lab.evaluation.costs import Costs
from foveate.lab.evaluation.lmms.asker import Asker
from foveate.lab.evaluation.plan import BOUNDS, Entry, Missed, has_dial, label, named, positioned
from foveate.lab.loading import device_of, load
from foveate.lab.options import method_from_words
from foveate.lab.terminal import CommandError
from foveate.method import Method, Positions
from foveate.methods.downsample import Downsample
from foveate.trained import adapted

#: Inputs of each task on which budgets are measured.
PROBES = 8


@dataclass(frozen=True)
class Request:
    """What to measure.

    Attributes:
        out: folder for answers, scores and report.
        model: a folder, an id on the Hugging Face hub, ``reference`` or ``reference-llava``.
        tasks: names that lmms-eval knows.
        adapter: folder or hub id of what ``foveate train`` wrote, for that model; its method, where no other is given.
        methods, options, described: see `foveate.lab.evaluation.plan.contenders`.
        budgets: shares of what the stock model spends, in (0, 1]; none: methods spend what their options say.
        by: what a budget counts: ``tokens`` (visual tokens per decoder layer) or ``flops`` (of a prompt and one token).
        positions: ``keep`` or ``renumber`` for all methods; None: what each says.
        limit: questions of each task; None: all.
        batch_size: questions that are asked together.
        include: folder of further tasks.
        dtype, device, attn: as for ``foveate run``.
    """

    out: Path
    model: str
    tasks: tuple[str, ...]
    adapter: str | None = None
    methods: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    described: tuple[str, ...] = ()
    budgets: tuple[float, ...] = ()
    by: str = "tokens"
    positions: str | None = None
    limit: int | None = None
    batch_size: int = 1
    include: Path | None = None
    dtype: str = "auto"
    device: str = "auto"
    attn: str | None = None


@dataclass(frozen=True)
class Plan:
    """What is run.

    Attributes:
        entries: the stock model first.
        missed: budgets out of a method's reach.
        notes: what was left out, and why.
    """

    entries: tuple[Entry, ...]
    missed: tuple[Missed, ...]
    notes: tuple[str, ...]


def subject(request: Request, device: Any = None) -> tuple[Asker, Method | None]:
    """The model, ready to be asked, and the method that its adapter was trained with."""
    check_dtype(request.dtype)
    place = device_of(request.device) if device is None else device
    model, processor = load(request.model, request.dtype, request.attn)
    trained = None
    if request.adapter is not None:
        trained = adapted(model, request.adapter, host_of(model))
    return Asker(model.to(place), processor), trained


def methods(request: Request, asker: Asker, trained: Method | None) -> dict[str, Method]:
    """Label -> method, as its options say."""
    names = [name for name in request.methods if name != DENSE]
    for name in names:
        if name in BOUNDS:
            raise CommandError(
                f"--method {name}: only the reference benchmark knows where its answers are; leave out --tasks"
            )
    found = [*named(names, request.options), *(method_from_words(None, None, [], text) for text in request.described)]
    if not found and trained is not None:
        found = [trained]
    if not found:
        raise CommandError("say what to measure: --method NAME, as often as you like (see `foveate methods`)")
    if request.positions is not None:
        found = [positioned(method, cast(Positions, request.positions)) for method in found]
    labelled: dict[str, Method] = {}
    for method in found:
        compress(asker.model, method).remove()  # says now what the model cannot do
        name = label(method, host_of(asker.model))
        if labelled.setdefault(name, method) != method:
            raise CommandError(f"two methods are both {name} but for what they spend: measure one of them at a time")
    return labelled


def spending(asker: Asker, inputs: Sequence[Any]) -> Callable[[Method], Cost]:
    """Measures what a method spends."""
    return lambda method: Cost.total((asker.spend(each, method), 1) for each in inputs)


def plan(
    request: Request, asker: Asker, labelled: dict[str, Method], costs: Costs, tell: Callable[[str], None]
) -> Plan:
    """Set every method to every budget, and `Downsample` to what each of them spends."""
    host = host_of(asker.model)
    entries, missed = [Entry(DENSE)], list[Missed]()
    notes: list[str] = []

    def cost(method: Method) -> float:
        return costs(method).share(request.by)

    for name, method in labelled.items():
        tell(f"finding what {name} spends")
        if not request.budgets or not has_dial(method, host):
            entries.append(Entry(name, method, round(cost(method), 2)))
            continue
        dial = Dial(method, host, cost)
        for budget in request.budgets:
            setting = dial.set(budget)
            if setting.reachable:
                entries.append(Entry(name, setting.method, budget))
            else:
                missed.append(Missed(name, budget, setting.cost))
    tell("finding Downsample's sizes")
    there = {entry.budget for entry in entries if isinstance(entry.method, Downsample)}
    wanted = dict.fromkeys(entry.budget for entry in entries if entry.budget is not None and entry.budget not in there)
    try:
        dial = Dial(Downsample(), host, cost)
    except FoveateError as error:
        return Plan(tuple(entries), tuple(missed), (*notes, f"no Group-A: {error}"))
    for budget in wanted:
        if budget > 1 - TOLERANCE:
            notes.append(f"no Group-A at a budget of {budget:g}: Downsample would not change a thing there")
            continue
        setting = dial.set(budget)
        if setting.reachable:
            entries.append(Entry(Downsample.name(), setting.method, budget))
        else:
            missed.append(Missed(Downsample.name(), budget, setting.cost))
    return Plan(tuple(entries), tuple(missed), tuple(notes))


def digest(model: Any) -> str:
    """SHA-256 of the configuration and of the beginning of every weight: another checkpoint has another one."""
    found = hashlib.sha256(model.config.to_json_string().encode())
    for name, weight in model.state_dict().items():
        found.update(f"{name} {tuple(weight.shape)}".encode())
        if not weight.is_meta:
            found.update(weight.flatten()[:1000].float().cpu().numpy().tobytes())
    return found.hexdigest()

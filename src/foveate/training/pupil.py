"""A model, and the learned parts of a method beside it, as one module that is trained."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from foveate.errors import TrainingError
from foveate.handle import Handle
from foveate.learning import Stage
from foveate.losses import IGNORED, Answer, Step
from foveate.method import Host, Method
from foveate.ops.rollout import rollout
from foveate.training.relaxed import Relaxed, Tape


class Pupil(nn.Module):
    """What transformers' Trainer is given: its forward is the method's soft one, and returns what is made small.

    Attributes:
        model: with LoRA on it, or frozen.
        parts: learned parts of the method.
        progress: how far the stage is, from 0 to 1; whoever walks through the stages says it.
    """

    def __init__(self, model: nn.Module, parts: nn.ModuleDict | None, host: Host, visual: Sequence[int]) -> None:
        """
        Args:
            model: whose parameters with gradients are those of LoRA.
            parts: made for it, or None.
            host: what is known of it.
            visual: ids of its placeholder tokens.
        """
        super().__init__()
        self.model, self.parts, self.progress = model, nn.ModuleDict() if parts is None else parts, 0.0
        self._made, self._host, self._visual = parts, host, tuple(visual)
        self.groups = {
            "lora": [parameter for parameter in model.parameters() if parameter.requires_grad],
            "parts": list(self.parts.parameters()),
        }
        base: Any = getattr(model, "get_base_model", lambda: model)()
        named = inspect.signature(base.forward).parameters.values()
        self._takes_items = any(each.kind is each.VAR_KEYWORD for each in named)
        self.others = 1.0  # what a loss other than the model's own is multiplied by, where batches add up to a step
        self._stage: Stage | None = None
        self._method: Method | None = None
        self._tape = Tape()
        self._handle: Handle | None = None
        self._said: dict[str, list[Tensor]] = {}

    # -- stages -------------------------------------------------------------------------------------------------------

    def enter(self, method: Method, stage: Stage) -> None:
        """Go on with a stage of a method: it is attached, and what the stage trains has gradients."""
        self.leave()
        self._stage, self._method = stage, method
        for group, parameters in self.groups.items():
            for parameter in parameters:
                parameter.requires_grad_(group in stage.trains)
        self._attach()

    def leave(self) -> None:
        """Take the method off. Calling it twice does nothing."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def _attach(self) -> None:
        assert self._stage is not None
        assert self._method is not None
        self._handle = Handle(self.model, Relaxed.of(self._method, self._made, self._stage, self._host, self._tape))

    @contextlib.contextmanager
    def _stock(self) -> Iterator[None]:
        """The model without the method and without LoRA, for a while."""
        self.leave()
        with getattr(self.model, "disable_adapter", contextlib.nullcontext)():
            yield
        self._attach()

    # -- what is trained, by name -------------------------------------------------------------------------------------

    def trained(self) -> dict[str, nn.Parameter]:
        """Every parameter that some stage may train, by its name."""
        ours = {id(parameter) for group in self.groups.values() for parameter in group}
        return {name: parameter for name, parameter in self.named_parameters() if id(parameter) in ours}

    def said(self) -> dict[str, float]:
        """Means of losses and of the agreement of soft and hard since this was asked last."""
        found = {name: float(torch.stack(values).mean()) for name, values in self._said.items()}
        self._said = {}
        return found

    # -- a step -------------------------------------------------------------------------------------------------------

    def forward(self, num_items_in_batch: Any = None, **batch: Any) -> dict[str, Tensor]:
        """Return the sum of the losses of the stage, each as its weight is now."""
        stage = self._stage
        if stage is None:
            raise TrainingError("no stage has begun: enter one before a forward")
        teacher = self._teacher(batch) if any(loss.asks_teacher for loss in stage.losses) else None
        target = self._relevance(batch) if stage.target == "relevance" else None
        self._tape.begin(self._answered(batch))
        items = (
            {} if num_items_in_batch is None or not self._takes_items else {"num_items_in_batch": num_items_in_batch}
        )
        output = self.model(**batch, **items)
        notes = self._tape.notes
        target = self._tape.target if target is None else target
        if target is not None and notes and len(target) != len(notes[0].score):
            raise TrainingError(
                f"{len(notes[0].score)} visual tokens are scored, and {len(target)} have a target: in {self._host.family!r} "
                "some placeholders stand for no patch, so this method cannot be trained on it"
            )
        step = Step(output.loss, output.logits, batch["labels"], notes, target, teacher)
        total = output.loss.new_zeros(())
        for loss in stage.losses:
            value = loss(step)
            self._note(loss.name(), value)
            scaled = isinstance(loss, Answer) and items
            total = total + loss.weight.at(self.progress) * value * (1.0 if scaled else self.others)
        for note in notes:
            self._note("agreement", note.agreement)
        if not total.requires_grad:  # a batch of text alone
            total = total + sum(p.sum() * 0.0 for group in stage.trains for p in self.groups[group])
        return {"loss": total}

    def _note(self, name: str, value: Tensor) -> None:
        self._said.setdefault(name, []).append(value.detach().float())

    def _answered(self, batch: dict[str, Any]) -> list[int]:
        """How many text tokens each row has from its first answer on."""
        learned = batch["labels"] != IGNORED
        text = batch["attention_mask"].bool() & ~self._places(batch)
        return [int(n) for n in (text & (learned.cumsum(1) > 0)).sum(1).tolist()]

    def _places(self, batch: dict[str, Any]) -> Tensor:
        """``(B, L)`` bool: placeholders of visual tokens."""
        return torch.isin(batch["input_ids"], torch.tensor(self._visual, device=batch["input_ids"].device))

    # -- teachers -----------------------------------------------------------------------------------------------------

    def _teacher(self, batch: dict[str, Any]) -> Tensor:
        """What the stock model says, with all tokens."""
        with self._stock(), torch.no_grad():
            logits: Tensor = self.model(**batch).logits
        return logits

    def _relevance(self, batch: dict[str, Any]) -> Tensor:
        """``(N,)`` what each visual token was worth to what the stock model says of the answer."""
        table: Any = self.model.get_input_embeddings()  # type: ignore[operator]
        hook = table.register_forward_hook(lambda module, args, output: output.detach().requires_grad_())
        try:
            with self._stock(), torch.enable_grad():
                output = self.model(**batch, output_attentions=True)
                maps = [each for each in output.attentions or () if each is not None]
                if not maps:
                    raise TrainingError(
                        "the model gives no attention maps, of which relevance is made: load it with eager attention"
                    )
                gradients = torch.autograd.grad(-output.loss, maps)
        finally:
            hook.remove()
        says = torch.nn.functional.pad(batch["labels"][:, 1:] != IGNORED, (0, 1)).to(maps[0].dtype)
        found = rollout([each.detach() for each in maps], gradients, says)
        return found[self._places(batch)]

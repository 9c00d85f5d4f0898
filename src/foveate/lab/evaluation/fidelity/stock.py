"""Any supported model, and what makes batches of prompts into its inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from foveate.errors import first_line
from foveate.handle import host_of
from foveate.lab.devices import device_of, put
from foveate.lab.evaluation.fidelity.prompts import Prompt
from foveate.lab.evaluation.runner import digest
from foveate.lab.loading import load
from foveate.lab.terminal import CommandError
from foveate.method import Host, Method
from foveate.trained import adapted


@dataclass(frozen=True, eq=False)
class Stock:
    """A model that can be asked anything.

    Attributes:
        name: a folder, a hub id or a reference model.
        digest: SHA-256 of its configuration, and of some numbers of each of its weights.
        model: in evaluation mode.
        processor: pads on the left.
        side: its tower takes squares of so many pixels and no others, as that of the reference LLaVA does; else 0.
        trained: the method that its adapter was trained with.
    """

    name: str
    digest: str
    model: Any
    processor: Any
    side: int
    trained: Method | None = None

    @cached_property
    def host(self) -> Host:
        """What a method may know about it."""
        return host_of(self.model)

    def inputs(self, prompts: Sequence[Prompt]) -> Any:
        """A padded batch, on the model's device.

        Raises:
            CommandError: the processor refuses one of the images, or all of it.
        """
        chats = []
        for prompt in prompts:
            images = [{"type": "image", "image": image} for image in prompt.opened()]
            chats.append([{"role": "user", "content": [*images, {"type": "text", "text": prompt.text}]}])
        try:
            made = self.processor.apply_chat_template(
                chats,
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
                processor_kwargs={"padding": True},
            )
        except ValueError as error:  # an image of a shape that this model does not take
            names = ", ".join(prompt.id for prompt in prompts)
            raise CommandError(
                f"the processor of {self.name!r} refuses the prompts {names}: {first_line(error)}"
            ) from None
        return made.to(self.model.device, self.model.dtype)


def load_stock(name: str, trained: str | None, dtype: str, device: str, attn: str | None) -> Stock:
    """A model by name, with the adapter ``trained`` on it.

    Raises:
        CommandError: it cannot be loaded, or its processor has no chat template.
    """
    where = device_of(device)
    model, processor = load(name, dtype, attn)
    tokenizer = getattr(processor, "tokenizer", None)
    if tokenizer is None or not getattr(processor, "chat_template", None):
        raise CommandError(f"the processor of {name!r} has no chat template, so a prompt cannot be put in its format")
    tokenizer.padding_side = "left"  # answers begin where prompts end
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    put(model, where, name)
    method = None
    if trained is not None:
        method = adapted(model, trained, host_of(model))
        name = f"{name} + {trained}"
    vision = getattr(model.config, "vision_config", None)
    side = getattr(vision, "image_size", None)
    side = side if isinstance(side, int) else 0
    return Stock(name, digest(model), model, processor, side, method)

"""Attach a method to a model: `compress` gives a `Handle`, and the handle takes it off again."""

from __future__ import annotations

import functools
import logging
import os
import tempfile
import threading
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

from torch import nn

from foveate import adapter, trained
from foveate.cost import Report, report
from foveate.errors import AdapterError, ConfigError, InputError, UnsupportedModelError, first_line
from foveate.method import Host, Method
from foveate.methods import make
from foveate.models import family_of, read_config
from foveate.runtime import attach
from foveate.runtime.attach import Runtime
from foveate.runtime.hooks import refuse_copy
from foveate.runtime.learned import part_names
from foveate.runtime.stored import Memory
from foveate.runtime.trace import Trace
from foveate.tokens import Tokens

_PLACE = "_foveate_handle"  # of the handle on its model: the two live and go together
_lock = threading.Lock()
_log = logging.getLogger(__name__)


class Handle:
    """A method on a model. Use it as a context manager, or call `remove`. The model keeps it, so that it goes with the model.

    Attributes:
        model: the model given to `compress`, unchanged but for hooks.
        method: what is attached.
        modules: its learned parts, by the name of the method and the name there; empty where it has none. They are not among
            the model's own, and no other handle has them. They go where the model goes (``model.to``, ``model.train``) at the
            next call.
    """

    def __init__(
        self,
        model: nn.Module,
        method: Method,
        undo: Callable[[], None] | None = None,
        fill: Callable[[nn.ModuleDict], Collection[str]] | None = None,
    ) -> None:
        self.model, self.method, self._undo = model, method, undo
        self._target = _vlm(model)
        self._family = family_of(self._target.config)
        with _lock:
            _refuse_second(self._target)
            self._runtime: Runtime | None = Runtime(self._target, self._family, method)
            self.modules = self._runtime.modules
            try:
                trained = () if fill is None else fill(self.modules)
            except BaseException:
                self._runtime.remove()
                raise
            vars(self._target)[_PLACE] = self
            _log.info("attached %r to %s", method, type(self._target).__name__)
            self._untrained = [name for name in self.modules if name not in trained]
            self._saves = [
                _warn_of_saving(each) for each in {id(each): each for each in (model, self._target)}.values()
            ]

    def parameters(self) -> Iterator[nn.Parameter]:
        """Return the parameters of the learned parts, for an optimiser."""
        return self.modules.parameters()

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write the method, the weights of its learned parts, and the LoRA adapter on the model, if there is one.

        ``foveate.compress(model, folder)`` restores all of it, on a model like this one.
        """
        runtime = self._attached("call save_pretrained() before remove()")
        trained.save(Path(folder), self.method, runtime.host, self.modules, self.model)

    def push_to_hub(self, repository: str, *, private: bool | None = None, token: str | bool | None = None) -> str:
        """Put on the hub what `save_pretrained` writes: ``foveate.from_pretrained(repository)`` gives all of it back.

        Args:
            repository: its id, ``"name/of-it"``; it is made if it is not there.
            private: whether others do not see a repository that is made.
            token: of the hub, where `huggingface_hub` has none.

        Returns:
            The address of the commit.
        """
        from huggingface_hub import HfApi

        hub = HfApi(token=token)
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            hub.create_repo(repository, private=private, exist_ok=True)
            commit = hub.upload_folder(repo_id=repository, folder_path=folder, commit_message=f"{self.method!r}")
        return str(commit.commit_url)

    def report(self) -> Report:
        """Tokens, FLOPs, KV bytes and times of the last call that has ended, whichever thread made it."""
        return report(self._target, self._family, self._last())

    @contextmanager
    def trace(self) -> Iterator[Callable[[], Trace]]:
        """Record calls token by token, for pictures: which tokens there were, who joined whom, where they moved.

        A call that begins outside of such a block is recorded as far as `report` needs it.

        >>> with handle.trace() as trace:                                   # doctest: +SKIP
        ...     model.generate(**inputs)
        ...     foveate.lab.story.tell(trace(), handle.report())
        """
        with self._attached("call trace() before remove()").calls.detailed():
            yield self._last

    def _last(self) -> Trace:
        """The trace of the last call that has ended."""
        found = self._attached("call report() before remove()").last()
        if found is None:
            raise UnsupportedModelError("no call of the model has ended since the method was attached: call it first")
        return found

    @property
    def encoded(self) -> Tokens:
        """The visual tokens that the last ``get_image_features`` of the model has left, when you called it yourself.

        What it returns are their features, in this order (and where a family puts newlines between them, those). Features may
        be kept and brought back in any order and together with others, as ``mm_encoder_outputs``.
        """
        left = self._attached("ask for `encoded` before remove()").encodings.left
        if left is None:
            raise InputError("no features were asked for under this handle: call model.get_image_features(...) first")
        return left

    def encode(self, inputs: Mapping[str, Any]) -> Memory:
        """Encode images once, to ask about them again and again, also in another process (`Memory.save`).

        Args:
            inputs: what a processor gives for images, or for videos; text that comes with them is passed over. Where the
                method keeps what the language model makes of an image (`Method.stores`), what it gives for a prompt with them.

        Returns:
            What the method leaves of them, or has made of them. ``model.generate(**text, memory=memory)`` takes it in place of
            pixels; the rest of the inputs (ids with their placeholders, grids) is what the processor gives with the images.
        """
        return self._attached("call encode() before remove()").memories.encode(inputs)

    def _attached(self, what_to_do: str) -> Runtime:
        """Return the hooks on the model; raise `UnsupportedModelError` if they were removed."""
        if self._runtime is None:
            raise UnsupportedModelError(f"this handle was removed: {what_to_do}")
        return self._runtime

    def remove(self) -> None:
        """Make the model the stock model again. Calling it twice does nothing.

        It waits for forwards of other threads. Between two forwards of a ``generate`` of another thread it does not: that one
        goes on with the stock model, or ends with a sentence where its cache holds fewer tokens.
        """
        runtime = self._runtime
        if runtime is None:
            return
        with runtime.calls.quiet(), _lock:
            if self._runtime is not None:
                self._runtime.remove()
                self._runtime = None
                if self._undo is not None:  # the adapter goes after the hooks that were put on with it
                    self._undo()
                vars(self._target).pop(_PLACE, None)
                _log.info("removed %r from %s", self.method, type(self._target).__name__)
                for undo in self._saves:
                    undo()

    def __reduce__(self) -> NoReturn:
        refuse_copy()

    def __enter__(self) -> Handle:
        self._attached("foveate.compress(model, handle.method) attaches the method again")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    def __repr__(self) -> str:
        state = "" if self._runtime else " (removed)"
        return f"<foveate {self.method!r} on {type(self._target).__name__}{state}>"


def compress(model: nn.Module, method: Method | str | os.PathLike[str], /, **options: Any) -> Handle:
    """Make a vision-language model use fewer vision tokens.

    Logits, the first and the last of ``hidden_states`` and the length of the cache have all ``S`` positions of a prompt, as
    without a method, with zero vectors for visual tokens that are not there. Other ``hidden_states`` are ``(B, n, D)``,
    ``attentions`` ``(B, heads, n, n)``: a layer gives the ``n`` tokens that it held, in its fullest row.

    Args:
        model: a Hugging Face model of a supported family (`foveate.list_families`), or a PEFT model around one. It stays the
            same object: ``forward`` and ``generate`` take and give what they did, but for what single layers give.
        method: a method, a sum of methods, or a name; or a folder or hub id of what ``foveate train`` or
            `Handle.save_pretrained` wrote, and then what was trained is restored, too, its learned parts, and until
            `Handle.remove` its adapter; or a sum with one of these, "ipcv + adapters/adsc".
        options: fields of the method, if it is given by name: ``compress(model, "fastv", keep=0.3)``; of what was trained, only
            ``keep``: another budget than that of training.

    Raises:
        FoveateError: the family is unknown, the model is compiled or already attached, or the method asks for a layer or
            signal that the model does not have. The model is left as it was.
    """
    handle = _compress(model, method, options)
    _warn_of_untrained(handle)
    return handle


def _compress(model: nn.Module, method: Method | str | os.PathLike[str], options: dict[str, Any]) -> Handle:
    if isinstance(method, os.PathLike):
        return _trained(model, [os.fspath(method)], options)
    if isinstance(method, str):
        parts = [method] if os.path.isdir(method) else [part.strip() for part in method.split("+")]
        if any(map(trained.is_source, parts)):
            return _trained(model, parts, options)
        method = make(method, **options)
    elif options:
        raise ConfigError(f"{', '.join(options)}: set options on the method itself, e.g. {type(method).__name__}(...)")
    if not isinstance(method, Method):
        raise ConfigError(
            f'{method!r} is neither a method nor the name of one: give FastV(keep=0.5), "fastv" or a sum, a + b'
        )
    return Handle(model, method)


def from_pretrained(source: str | os.PathLike[str], /, **options: Any) -> Handle:
    """Return a model with the method that `Handle.save_pretrained`, `Handle.push_to_hub` or ``foveate train`` wrote.

    Args:
        source: a folder or a hub id. Where it has a model, too (of ``model.save_pretrained``), it is that one; else the one
            that was loaded when the method was saved, in the dtype that it had then.
        options: for the model's own ``from_pretrained``: ``dtype``, ``device_map``, ``attn_implementation`` ...

    Returns:
        The handle; its ``model`` is in evaluation mode.
    """
    from transformers import AutoModelForImageTextToText

    name = os.fspath(source)
    base, usual = trained.base_of(name)
    try:
        family_of(read_config(base))  # says what is supported before gigabytes are loaded
        model = AutoModelForImageTextToText.from_pretrained(base, **{**usual, **options}).eval()
    except (
        OSError,
        ValueError,
        RuntimeError,
        AssertionError,
        ImportError,
    ) as error:  # of a device that is not there, too
        raise AdapterError(f"cannot load {base!r}, the model of {name!r}: {first_line(error)}") from None
    return compress(model, Path(name) if os.path.isdir(name) else name)


def _warn_of_saving(model: nn.Module) -> Callable[[], None]:
    """Make the model's own ``save_pretrained`` (``push_to_hub`` calls it) say that the method is left out; what undoes it."""
    if not hasattr(model, "save_pretrained"):
        return lambda: None
    place = vars(model)
    before = place.get("save_pretrained")
    save: Any = model.save_pretrained

    @functools.wraps(save)
    def save_pretrained(*args: Any, **kwargs: Any) -> Any:
        warnings.warn(
            "model.save_pretrained writes the model without the method that foveate has attached to it: "
            "foveate.attached(model).save_pretrained(folder) writes the method, into the same folder if you like, and "
            "foveate.from_pretrained(folder) restores both",
            stacklevel=2,
        )
        return save(*args, **kwargs)

    place["save_pretrained"] = save_pretrained

    def undo() -> None:
        if place.get("save_pretrained") is save_pretrained:
            place.pop("save_pretrained")
            if before is not None:
                place["save_pretrained"] = before

    return undo


def _warn_of_untrained(handle: Handle) -> None:
    """Warn of learned parts that nobody has trained: with random weights, what a method keeps means nothing."""
    found = dict(zip(part_names(handle.method), handle.method.parts()))
    names = list(dict.fromkeys(found[name].name() for name in handle._untrained))
    if names:
        several = len(names) > 1
        warnings.warn(
            f"{' and '.join(names)} {'have' if several else 'has'} learned parts with random weights, so that what "
            f"{'they choose' if several else 'it chooses'} means nothing yet: train {'them' if several else 'it'} (`foveate "
            f"train {names[0]}`), or give the folder of what was trained in place of the name",
            stacklevel=3,
        )


def _trained(model: nn.Module, parts: list[str], options: dict[str, Any]) -> Handle:
    """Return the sum of ``parts``, names and sources of trained methods."""
    keep = options.pop("keep", None) if len(parts) == 1 else None
    if options:
        sources = " and ".join(repr(part) for part in parts if trained.is_source(part))
        may = "" if len(parts) > 1 else " (only keep may be another one)"
        raise ConfigError(f"{', '.join(options)}: the method in {sources} has its options already{may}; leave them out")
    target = _vlm(model)
    _refuse_second(target)
    host = host_of(target)
    found = [trained.read(part, host) if trained.is_source(part) else make(part) for part in parts]
    adapters = [each for each in found if isinstance(each, trained.Trained) and each.adapted]
    if len(adapters) > 1:
        raise ConfigError(f"{adapters[0].source!r} and {adapters[1].source!r}: a model takes one adapter at a time")
    first, *rest = [each.method if isinstance(each, trained.Trained) else each for each in found]
    method = sum(rest, start=first) if keep is None else first.with_keep(keep)

    def fill(modules: nn.ModuleDict) -> list[str]:
        names, filled = iter(part_names(method)), []
        for each in found:
            own = each.method if isinstance(each, trained.Trained) else each
            mine = [next(names) for _ in own.parts()]
            if isinstance(each, trained.Trained):
                trained.fill(modules, mine, each)
                filled += mine
        return filled

    undo = adapter.attach(target, adapters[0].folder, adapters[0].source) if adapters else None
    try:
        return Handle(model, method, undo, fill)
    except BaseException:
        if undo is not None:
            undo()
        raise


def attach_learned(model: nn.Module, method: Method, learned: trained.Trained | None) -> Handle:
    """Attach a method with what others of its kind have learned, whose adapter is on ``model`` already (`trained.adapted`)."""

    def fill(modules: nn.ModuleDict) -> list[str]:
        return [] if learned is None else trained.fill_alike(modules, method, learned)

    handle = Handle(model, method, None, fill)
    _warn_of_untrained(handle)
    return handle


def attached(model: nn.Module) -> Handle | None:
    """Return the handle of the method that ``model`` carries, if you have lost it; None: it carries none."""
    found: Handle | None = vars(_vlm(model)).get(_PLACE)
    return found


def _refuse_second(target: nn.Module) -> None:
    other = attached(target)
    if other is not None:
        raise UnsupportedModelError(
            f"the model already carries {other.method!r}: remove that handle first (`foveate.attached(model)` gives it), or "
            "attach both at once as `foveate.compress(model, a + b)`"
        )


def host_of(model: nn.Module) -> Host:
    """Return what a method may know about ``model``: family, depths, whether its tower has a CLS token."""
    target = _vlm(model)
    return attach.host_of(target, family_of(target.config))


def _vlm(model: Any) -> nn.Module:
    """Return the vision-language model inside wrappers (PEFT)."""
    if hasattr(model, "get_base_model"):
        model = model.get_base_model()
    inner = getattr(model, "model", None)
    if not isinstance(model, nn.Module) and isinstance(inner, nn.Module) and hasattr(inner, "config"):
        raise UnsupportedModelError(
            f"a {type(model).__name__} is not a model, but has one: foveate.compress(pipe.model, ...), and it answers with the "
            "method from then on"
        )
    if isinstance(model, str):
        raise UnsupportedModelError(
            f"{model!r} is a name, not a model: load it first, AutoModelForImageTextToText.from_pretrained({model!r})"
        )
    if not isinstance(model, nn.Module) or not hasattr(model, "config"):
        raise UnsupportedModelError(f"{type(model).__name__} is not a Hugging Face model")
    return model

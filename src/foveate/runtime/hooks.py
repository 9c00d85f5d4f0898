"""Hooks of modules, and their arguments: put on a model, and taken off in reverse order."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from foveate.errors import UnsupportedModelError
from foveate.runtime.steady import Steady


@functools.cache
def _hook_types() -> tuple[type[Any], type[Any]]:
    """Make the classes of hooks when one is needed: `torch.compiler.disable` imports the compiler, which takes long."""

    class Hook:
        """A hook as it is registered: outside of graphs that are compiled later, and inert once removed (they may keep it)."""

        def __init__(self, hooks: Hooks, hook: Callable[..., Any]) -> None:
            self._hooks, self._hook = hooks, hook

        @torch.compiler.disable  # type: ignore[untyped-decorator]
        def __call__(self, *args: Any) -> Any:
            return None if self._hooks.removed else self._hook(*args)

        def __reduce__(self) -> NoReturn:
            refuse_copy()

    class RestingHook(Hook):
        """One that has nothing to do in a step of decoding which was made ready: a graph of that step goes on through it."""

        def __call__(self, *args: Any) -> Any:
            if not torch.compiler.is_compiling():
                return self._unless_ready(*args)
            return None if self._hooks.steady.ready and _is_of_one_token(args) else self._apart(*args)

        def _unless_ready(self, *args: Any) -> Any:
            ready = self._hooks.steady.is_ready() and _is_of_one_token(args)
            return None if ready or self._hooks.removed else self._hook(*args)

        _apart = torch.compiler.disable(_unless_ready)

    return Hook, RestingHook


def _is_of_one_token(args: tuple[Any, ...]) -> bool:
    """Tell whether a hook is given, with its module, the arguments or the output of a forward for one token a row.

    A step is known by its thread. This tells it from a prompt with which a part of the model is called by another thread, in
    a graph, which does not know threads, or by the same one after a step that was interrupted.
    """
    _, given, last = args
    if given:
        x = given[0]
    elif type(last) is dict:
        x = last.get("inputs_embeds") if last.get("inputs_embeds") is not None else last.get("input_ids")
    else:
        x = None if last is None else last[0]  # None: an error is on its way
    return x is not None and x.shape[1] == 1


def refuse_copy() -> NoReturn:
    """Raise the error of a model that is copied or pickled with a method on it."""
    raise UnsupportedModelError(
        "a model cannot be copied or pickled while a method is attached: remove the handle first "
        "(foveate.attached(model).remove()), or write both to a folder (handle.save_pretrained, model.save_pretrained)"
    )


class Hooks:
    """Hooks and other changes of a model, undone in reverse order.

    Args:
        steady: forwards of its language model; hooks that ``rest`` are not called in a step for which all is done.
    """

    def __init__(self, steady: Steady | None = None) -> None:
        self._undo: list[Callable[[], None]] = []
        self._before: dict[tuple[nn.Module, bool, bool], list[Callable[..., Any]]] = {}
        self.removed, self.steady = False, steady or Steady()

    def pre(self, module: nn.Module, hook: Callable[..., Any], *, first: bool = False, rests: bool = False) -> None:
        """Call ``hook(module, args, kwargs) -> None | (args, kwargs)`` before a module; ``first``: before other hooks.

        Those of one module are a single hook for torch, which takes long to call one.
        """
        chain = self._before.setdefault((module, first, rests), [])
        chain.insert(0 if first else len(chain), hook)
        if len(chain) == 1:
            run = _hook_types()[rests](self, partial(self._in_turn, chain))
            self._keep(module.register_forward_pre_hook(run, with_kwargs=True, prepend=first))

    def _in_turn(self, chain: list[Callable[..., Any]], module: nn.Module, args: Any, kwargs: Any) -> Any:
        changed = None
        for hook in chain:
            new = None if self.removed else hook(module, args, kwargs)
            if new is not None:
                args, kwargs = changed = new
        return changed

    def post(
        self,
        module: nn.Module,
        hook: Callable[..., Any],
        *,
        first: bool = False,
        always: bool = False,
        rests: bool = False,
    ) -> None:
        """Call ``hook(module, args, output) -> None | output`` after a module.

        ``first``: before other hooks. ``always``: after errors, too.
        """
        run = _hook_types()[rests](self, hook)
        self._keep(module.register_forward_hook(run, prepend=first, always_call=always))

    def around(self, module: nn.Module, name: str, before: Callable[..., None], after: Callable[[Any], Any]) -> None:
        """Wrap a function of ``module``: ``before(*args, **kwargs)``; ``after(output) -> output``, with None after an error."""
        begin, end = torch.compiler.disable(before), torch.compiler.disable(after)

        def run(stock: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            output = None
            try:
                begin(*args, **kwargs)
                output = stock(*args, **kwargs)
            finally:
                output = end(output)
            return output

        self.instead(module, name, run)

    def instead(self, module: nn.Module, name: str, run: Callable[..., Any]) -> None:
        """Call ``run(stock, *args, **kwargs)`` wherever the function ``stock`` of ``module`` is called."""
        stock = getattr(module, name)

        @functools.wraps(stock)
        def ours(*args: Any, **kwargs: Any) -> Any:
            return stock(*args, **kwargs) if self.removed else run(stock, *args, **kwargs)

        self.swap(module, name, ours)

    def swap(self, module: nn.Module, name: str, ours: Callable[..., Any]) -> None:
        """Put ``ours`` where a function of ``module`` was."""
        own = vars(module).get(name)

        def undo() -> None:
            delattr(module, name) if own is None else setattr(module, name, own)

        setattr(module, name, ours)
        self._undo.append(undo)

    def _keep(self, handle: RemovableHandle) -> None:
        self._undo.append(handle.remove)

    def change(self, undo: Callable[[], None]) -> None:
        """Register the undoing of some other change."""
        self._undo.append(undo)

    def remove(self) -> None:
        """Undo everything; calling it again does nothing."""
        self.removed = True
        self._before.clear()  # hooks know those who gave them, who know this: all that is left would wait for the collector
        while self._undo:
            self._undo.pop()()


def stock_forward(module: nn.Module) -> Callable[..., Any]:
    """Return the forward of a module without what `Hooks.swap` has put there, if that says what it stands for (``stock``)."""
    forward: Callable[..., Any] = getattr(module.forward, "stock", module.forward)
    return forward


def device_of(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.device:
    """Tell where a module will run."""
    device = next(module.parameters()).device
    if device.type == "meta":  # offloaded weights come when they are needed
        device = next(x.device for x in (*args, *kwargs.values()) if isinstance(x, Tensor))
    return device


def first_argument(args: tuple[Any, ...], kwargs: dict[str, Any], name: str) -> Any:
    """Return the main input of a module, passed by position or by name."""
    return args[0] if args else kwargs[name]


def replace_first(
    args: tuple[Any, ...], kwargs: dict[str, Any], name: str, value: Any
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Replace the main input of a module in its arguments."""
    if args:
        return (value, *args[1:]), kwargs
    return args, {**kwargs, name: value}


def by_position(module: nn.Module, n: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    """Undo `by_name`: pass the first ``n`` arguments by position again (gradients may ask for that)."""
    if len(args) >= n:
        return args, kwargs
    names = list(inspect.signature(module.forward).parameters)[len(args) : n]
    return (*args, *(kwargs[name] for name in names)), {k: v for k, v in kwargs.items() if k not in names}


def by_name(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    """Pass all arguments of a module but the first one by name."""
    if len(args) < 2:
        return args, kwargs
    names = list(inspect.signature(module.forward).parameters)
    return args[:1], {**dict(zip(names[1:], args[1:])), **kwargs}


def refuse_without_weights(module: nn.Module) -> Callable[..., None]:
    """Return a hook of a module that raises `UnsupportedModelError` if weights are on no device, and nothing will bring them
    there. One tells of all, as this is asked in every forward."""
    named = ((each, name) for each in module.modules() for name, _ in each.named_parameters(recurse=False))
    owner, name = next(named, (module, ""))

    def ask(*_: Any) -> None:
        weight = getattr(owner, name, None)
        if weight is not None and weight.device.type == "meta" and not hasattr(owner, "_hf_hook"):
            raise UnsupportedModelError(
                f"the weights of {type(owner).__name__} are on the device 'meta', where nothing is computed: load the model "
                "on a device that is there, as from_pretrained does by default"
            )

    return ask

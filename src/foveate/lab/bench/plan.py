"""Which methods are measured, and how each is called."""

from __future__ import annotations

from dataclasses import MISSING, fields

from foveate.lab.bench.request import Request, check_methods
from foveate.lab.bench.result import DENSE
from foveate.lab.options import method_from_words
from foveate.lab.terminal import CommandError
from foveate.lab.words import options_by_method
from foveate.method import Method

#: Without a method: controls, and the systems that this library is built around.
DEFAULT = ("random", "stride", "downsample", "luvc", "ipcv", "adsc")


def contenders(request: Request) -> dict[str, Method | None]:
    """Label -> method, the stock model first."""
    check_methods(request)
    named = [name for name in request.methods if name != DENSE]
    if not (request.methods or request.described):
        named = list(DEFAULT)
    found: list[Method] = []
    for name, own in zip(named, options_by_method(named, request.options)):
        found += [method_from_words(name, keep, own, None) for keep in request.keeps or [None]]
    found += [method_from_words(None, None, [], text) for text in request.described]
    labelled: dict[str, Method | None] = {DENSE: None}
    for method in found:
        if label(method) in labelled:
            raise CommandError(f"{label(method)} would be measured twice: name it once")
        labelled[label(method)] = method
    return labelled


def label(method: Method) -> str:
    """``fastv(keep=0.3, layer=4)``: the name, and what is not as it is by default."""
    terms = "+".join(map(_label, method.terms()))
    return f"({terms})(keep={method.keep:.4g})" if len(method.terms()) > 1 and method.keep is not None else terms


def _label(method: Method) -> str:
    options = []
    for f in fields(method):
        value = getattr(method, f.name)
        if f.default is MISSING or value != f.default:
            options.append(f"{f.name}={value:.4g}" if isinstance(value, float) else f"{f.name}={value}")
    return method.name() + (f"({', '.join(options)})" if options else "")

"""Every method as data: JSON there and back, options checked, sums, names. Nothing here needs a forward pass."""

from __future__ import annotations

import json
import math
from typing import Any, get_args

import pytest
import tiny

import foveate
from foveate import ADSC, IPCV, LUVC, OIM, SPU, DivPrune, FastV, Method, Random, Site, Stride, ToMe, V2Drop
from foveate.errors import ConfigError, UnknownNameError
from foveate.runtime.layout import frames, tokens_of
from foveate.serialise import options_of

METHODS = foveate.list_methods()
HOST = foveate.Host("llava", blocks=23, layers=32, has_cls=True)
every_method = pytest.mark.parametrize("cls", METHODS.values(), ids=METHODS)
every_keeping_method = pytest.mark.parametrize(
    "cls",
    [cls for cls in METHODS.values() if cls.unit != "none"],
    ids=[n for n, cls in METHODS.items() if cls.unit != "none"],
)
#: options that are numbers, and no shares
NUMBERS = {
    "air": ("tau", "epsilon", "strength"),
    "autoprune": ("steepness", "gamma"),
    "clse": ("temperature",),
    "dymu": ("threshold",),
    "anchorprune": ("tau",),
    "eadp": ("beta",),
    "evoprune": ("bandwidth", "diversity"),
    "ficocov": ("penalty",),
    "vitcop": ("cutoff", "reach"),
    "gsearch": ("steepness",),
    "mmtok": ("alpha",),
    "mustdrop": ("threshold",),
    "otprune": ("gamma",),
    "pixelprune": ("threshold",),
    "prumerge": ("threshold",),
    "rlt": ("threshold",),
}


def ratios_of(cls: type[Method]) -> list[str]:
    """Options that are shares."""
    return [
        option
        for option, (hint, default) in options_of(cls).items()
        if float in (hint, *get_args(hint)) and option not in NUMBERS.get(cls.name(), ())
    ]


CHANGED = [
    FastV(ratio=0.25, layer=-1),
    Random(seed=7, positions="renumber"),
    DivPrune(keep=1.0, positions="native"),
    Stride(ratio=0.1, layers=(0, 2, 4)),
    V2Drop(layers=(1, 3), ratios=(0.5, 0.0)),
    foveate.VTW(layer=3),
    LUVC(ratio=0.3, merge=1.0, positions="renumber"),
    LUVC(keep=0.3, schedule=((2, 0.5), (4, 0.0))),
    IPCV(keep=0.6, across="budget") + (ToMe() + FastV(layer=1)).with_keep(0.4),
    (ToMe() + FastV()).with_keep(0.25),
    OIM(passes=((1, "width", 0.5), (1, "height", 0.75), (2, "width", 1.0))),
    SPU(schedule=((2, 0.5), (4, 0.0)), filter="gaussian", along="channels"),
    ADSC(keep=2 / 9, layers=(1, 3), pattern="checker", offset="first"),
    ToMe(keep=0.7) + FastV() + V2Drop(),
]


def from_json(cls: type[Method], /, **options: Any) -> Method:
    return foveate.method_from_dict({"method": cls.name(), **options})


# -- JSON ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [*(cls() for cls in METHODS.values()), *CHANGED], ids=repr)
def test_json_there_and_back(method: Method) -> None:
    data = method.to_dict()
    text = json.dumps(data)
    for source in (data, text):
        again = foveate.method_from_dict(source)
        assert again == method
        assert hash(again) == hash(method)
        assert repr(again) == repr(method)
    assert json.loads(text) == data
    assert eval(repr(method), {**METHODS, **{cls.__name__: cls for cls in METHODS.values()}}) == method


def refused(cls: type[Method], option: str, value: Any) -> str:
    """The sentence that refuses an option, which it names; what was given is in the traceback if none does."""
    with pytest.raises(ConfigError, match=option) as caught:
        from_json(cls, **{option: value})
    return str(caught.value)


@every_method
def test_unknown_option(cls: type[Method]) -> None:
    for unknown in ("kep", "name", "method_", "", "__class__", "cls", "options"):
        assert repr(unknown) in refused(cls, unknown, 0.5)


@every_method
def test_wrong_type(cls: type[Method]) -> None:
    for option in options_of(cls):
        for value in ({"a": 1}, {}, [[]], "junk", [0.5, "junk"]):
            refused(cls, option, value)


@every_method
def test_wrong_ratio(cls: type[Method]) -> None:
    for option in ratios_of(cls):
        for value in ("0.5", True, [0.5], -0.01, 1.01, math.nan, math.inf, -math.inf):
            refused(cls, option, value)


HUGE: tuple[Any, ...] = (10**400, -(10**400), 10**5000, math.inf, math.nan)


@every_method
def test_numbers_that_nothing_can_hold(cls: type[Method]) -> None:
    for option in options_of(cls):
        for value in HUGE:
            for given in (value, [value], [[value, value]]):
                assert len(refused(cls, option, given)) < 500


def test_a_number_too_large_for_a_generator() -> None:
    with pytest.raises(ConfigError, match=r"Random.seed=.*at most 9223372036854775807"):
        Random(seed=2**63)
    tokens = tokens_of(frames([(1, 2, 2)]))
    assert len(Random(seed=2**63 - 1).score(tokens, Site("decoder", 3))) == len(tokens)


@pytest.mark.parametrize("ratios", [[1.5, 0.5, 0.0], [0.5, -0.1, 0.0], [0.5, 0.5, math.nan]], ids=repr)
def test_wrong_ratio_in_a_list(ratios: list[float]) -> None:
    with pytest.raises(ConfigError, match="ratios"):
        from_json(V2Drop, ratios=ratios)


def test_lists_are_tuples() -> None:
    """Also lists in lists, so that a method can be hashed, is what its JSON gives, and says what it says of tuples."""
    for listed, tupled in (
        (foveate.QCache(layers=[1, 2]), foveate.QCache(layers=(1, 2))),  # type: ignore[arg-type]
        (foveate.DyMU(threshold=[0.1, 0.2]), foveate.DyMU(threshold=(0.1, 0.2))),  # type: ignore[arg-type]
        (FastV(schedule=[[1, 0.5]]), FastV(schedule=((1, 0.5),))),  # type: ignore[arg-type]
    ):
        assert listed == tupled
        assert hash(listed) == hash(tupled)
        assert foveate.method_from_dict(listed.to_dict()) == listed
    with pytest.raises(ConfigError, match=r"ratios=1\.5 is not a ratio"):
        foveate.VScan(layers=(0, 2), ratios=[1.5, 0.5])  # type: ignore[arg-type]


def test_one_ratio_per_layer() -> None:
    for method in (V2Drop(layers=(1, 2)), V2Drop(ratios=(0.5, 0.5))):
        with pytest.raises(ConfigError, match="one ratio per layer"):
            method.sites(HOST)


@every_keeping_method
def test_whole_numbers_are_ratios(cls: type[Method]) -> None:
    for whole in (0, 1):
        assert from_json(cls, keep=whole) == cls(keep=float(whole))


@every_method
def test_positions(cls: type[Method]) -> None:
    for positions in ("keep", "renumber", "native"):
        assert from_json(cls, positions=positions) == cls(positions=positions)
    for wrong in ("Keep", "", 1, None, True, ["keep"]):
        with pytest.raises(ConfigError, match="positions"):
            from_json(cls, positions=wrong)
    with pytest.raises(ConfigError, match="positions"):
        cls(positions="original")  # type: ignore[arg-type]


def nested(depth: int) -> dict[str, Any]:
    """A sum in a sum, and nobody in the last one."""
    return {"method": "composed", "methods": [nested(depth - 1)] if depth else []}


JUNK: list[Any] = [
    *(None, 1, 1.5, True, [], [{"method": "fastv"}], {}, b"{}", ("fastv",), {"fastv": {}}, {"methods": ["fastv"]}),
    *("", "null", "fastv", "[]", "{", '"fastv"', "{'method': 'fastv'}", "[" * 100_000, '{"method": ' * 100_000),
    *({"method": value} for value in (None, 1, ["fastv"], {}, "", "+", "fastv+", "Method", "os.system", "__import__")),
    *({"method": name} for name in ("composed", "method", "foveate.methods.fastv", "../fastv", "fast\x00v", "FastV()")),
    *(f'{{"method": "fastv", "keep": {number}}}' for number in ("1e999", "9" * 5000, "-1E400", "NaN", "Infinity")),
    {"method": "fastv", 1: 2},
    {"method": "fastv+vtw", "layer": 3},
    *(
        {"method": "composed", "methods": junk}
        for junk in (None, {}, "fastv", ["fastv"], [None], [[]], [{"method": 3}])
    ),
    {"method": "composed", "methods": [{"method": "fastv"}], "keep": "0.5"},
    {"method": "composed", "methods": [{"method": "fastv"}], "ratio": 0.5},
    {"method": "composed", "methods": [{"method": "fastv", "keep": 2}]},
    {"method": "composed", "methods": [{"method": "composed", "methods": [{"method": "nobody"}]}]},
]


@pytest.mark.parametrize("junk", JUNK, ids=lambda junk: repr(junk)[:60])
def test_junk(junk: Any) -> None:
    with pytest.raises((ConfigError, UnknownNameError)) as caught:
        foveate.method_from_dict(junk)
    assert str(caught.value).strip()


def test_sums_in_sums_without_end() -> None:
    for data in (nested(900), json.dumps(nested(300))):
        with pytest.raises(ConfigError):
            foveate.method_from_dict(data)


def test_json_is_never_executed() -> None:
    bomb = "__import__('os').system('exit 1')"
    for data in ({"method": bomb}, {"method": "fastv", "keep": bomb}, {"method": "fastv", bomb: 1}, bomb):
        with pytest.raises((ConfigError, UnknownNameError)):
            foveate.method_from_dict(data)


# -- sums ---------------------------------------------------------------------------------------------------------------


def test_sums_are_flat() -> None:
    a, b, c = ToMe(), FastV(), foveate.DyCoke()
    for sum_ in (a + b + c, (a + b) + c, a + (b + c)):
        assert sum_.parts() == (a, b, c)
        assert sum_ == a + b + c
        assert hash(sum_) == hash(a + b + c)
        assert foveate.method_from_dict(sum_.to_dict()).parts() == (a, b, c)
    assert a + b != b + a
    assert a.parts() == (a,)


def test_nested_sums_of_json_are_flat() -> None:
    a, b, c = ToMe(), FastV(), foveate.DyCoke()
    nested = {"method": "composed", "methods": [(a + b).to_dict(), c.to_dict()]}
    assert foveate.method_from_dict(nested).parts() == (a, b, c)


def test_a_sum_by_names() -> None:
    assert foveate.method_from_dict({"method": "tome + fastv"}) == ToMe() + FastV()


@pytest.mark.parametrize("other", ["fastv", 1, None, FastV])
def test_only_methods_add_up(other: Any) -> None:
    with pytest.raises(TypeError):
        FastV() + other


def test_an_empty_sum_says_nothing() -> None:
    with pytest.raises(ConfigError):
        foveate.method_from_dict({"method": "composed", "methods": []})


# -- names --------------------------------------------------------------------------------------------------------------


@every_method
def test_every_method_is_an_attribute_and_a_name(cls: type[Method]) -> None:
    assert getattr(foveate, cls.__name__) is cls
    assert cls.__name__ in dir(foveate)
    assert METHODS[cls.name()] is cls
    with foveate.compress(tiny.model("qwen2_5_vl"), cls.name()) as handle:  # (it knows which frames are of one video)
        assert handle.method == cls()


def test_compress_by_name_takes_options() -> None:
    model = tiny.model("qwen2_5_vl")
    with foveate.compress(model, "fastv", ratio=0.3, layer=1) as handle:
        assert handle.method == FastV(ratio=0.3, layer=1)
    with foveate.compress(model, "tome+fastv") as handle:
        assert handle.method == ToMe() + FastV()
    with foveate.compress(model, "tome+fastv", keep=0.4) as handle:
        assert handle.method == (ToMe() + FastV()).with_keep(0.4)
    with pytest.raises(ConfigError, match="kep"):
        foveate.compress(model, "fastv", kep=0.3)
    with pytest.raises(ConfigError, match="keep"):
        foveate.compress(model, FastV(), keep=0.3)
    with pytest.raises(ConfigError, match="ambiguous"):
        foveate.compress(model, "tome+fastv", layer=3)
    for junk in (None, 3, FastV, {"method": "fastv"}):
        with pytest.raises(ConfigError):
            foveate.compress(model, junk)  # type: ignore[arg-type]

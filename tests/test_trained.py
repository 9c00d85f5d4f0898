"""Learned parts of methods: made once for a handle, trained through the model, saved, and restored with it."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import tiny
import torch
import transformers
from contract import PROPERTIES, Property
from packaging.version import Version
from probes.learned import Learned
from safetensors.torch import load_file, save_file
from snapshot import state_of
from torch import nn

import foveate
from foveate import Host, Method, Reduction, Site, Tokens, trained
from foveate.errors import AdapterError, ConfigError, UnsupportedModelError, UnsupportedSiteError
from foveate.handle import attach_learned, host_of
from foveate.methods import list_methods
from foveate.models import family_of
from foveate.serving.plan import make_plan

ROWS: list[list[tiny.Item]] = [[3, "image", 5], [2, "image", 4]]
SITES = [Learned(at="tower"), Learned(at="tower_output"), Learned(at="lm_entry"), Learned(soft=False)]


@pytest.fixture(autouse=True)
def registered(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The probe is a method of another package, so that its name in a folder says what it is."""
    info = tmp_path_factory.mktemp("site") / "probes-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: probes\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[foveate.methods]\nlearned = probes.learned\n")
    monkeypatch.syspath_prepend(str(info.parent))
    list_methods.cache_clear()
    yield
    list_methods.cache_clear()


def step(model: Any, batch: dict[str, Any]) -> torch.Tensor:
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    loss: torch.Tensor = model(**batch, labels=labels).loss
    loss.backward()
    return loss.detach()


def folder_of(model: Any, method: Method, folder: Path) -> str:
    """What a handle with random learned parts writes."""
    with torch.random.fork_rng(devices=[]), foveate.compress(model, method) as handle:
        torch.manual_seed(7)
        with torch.no_grad():
            for parameter in handle.parameters():
                parameter.normal_(std=0.2)
        handle.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_trained_saved_and_restored(family: str, tmp_path: Path) -> None:
    """The loss falls by its learned parts alone; what was saved gives the same logits, bit for bit, on a fresh model."""
    model, batch = tiny.model(family, fresh=True), tiny.inputs(family, ROWS, padding_side="right")
    before, own = state_of(model), set(model.state_dict())
    stock = tiny.text_logits(model, batch)
    with foveate.compress(model, Learned()) as handle:
        assert set(model.state_dict()) == own
        model.requires_grad_(False).train()
        optimiser = torch.optim.Adam(handle.parameters(), lr=1e-2)
        losses = []
        for _ in range(20):
            optimiser.zero_grad()
            losses.append(float(step(model, batch)))
            optimiser.step()
        assert sum(losses[-3:]) < 0.9 * sum(losses[:3])
        model.eval()
        expected = tiny.text_logits(model, batch)
        assert not torch.equal(expected, stock)
        assert handle.report().visits[0].after == tuple(n // 2 for n in handle.report().visits[0].before)
        handle.save_pretrained(tmp_path / "run")
        learned = {name: value.clone() for name, value in handle.modules.state_dict().items()}
    assert torch.equal(tiny.text_logits(model, batch), stock)
    assert state_of(model) == before
    assert set(load_file(tmp_path / "run" / trained.MODULES)) == set(learned)
    assert "learned.score.weight" in learned

    fresh = tiny.model(family, fresh=True)
    with foveate.compress(fresh, tmp_path / "run") as handle:
        assert handle.method == Learned()
        assert torch.equal(tiny.text_logits(fresh, batch), expected)
        handle.save_pretrained(tmp_path / "again")
    for name in (trained.METHOD, trained.MODULES):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


@pytest.mark.parametrize("family", tiny.STRUCTURES)
def test_gradients_reach_learned_parts_everywhere(family: str) -> None:
    model, batch = tiny.model(family), tiny.inputs(family, ROWS, padding_side="right")
    for method in SITES:
        with foveate.compress(model, method) as handle:
            step(model, batch)
            for name, parameter in handle.modules.named_parameters():
                assert parameter.grad is not None, (method, name)
                assert bool(parameter.grad.isfinite().all()), (method, name)
                assert bool((parameter.grad != 0).any()), (method, name)
    model.zero_grad()


@pytest.mark.skipif(Version(transformers.__version__) < Version("5.23"), reason="hooks run again inside checkpoints")
def test_gradient_checkpointing_gives_the_same_gradients() -> None:
    model, batch = tiny.model("qwen2_5_vl", fresh=True).train(), tiny.inputs("qwen2_5_vl", ROWS, padding_side="right")
    with foveate.compress(model, Learned(at="tower", soft=False) + Learned()) as handle:
        found = []
        for _ in range(2):
            handle.modules.zero_grad()
            step(model, batch)
            found.append([p.grad.clone() for p in handle.parameters() if p.grad is not None])
            model.gradient_checkpointing_enable()
        assert len(found[0]) == 8
        for plain, again in zip(*found, strict=True):
            torch.testing.assert_close(plain, again, rtol=1e-4, atol=1e-6)


@dataclass(frozen=True)
class Reader(Method):
    """Reads what is paid in the layer before, as one that is trained does."""

    at: Any = "decoder"
    signal: Any = "last_row"
    read: ClassVar[list[torch.Tensor]] = []
    training_free: ClassVar[bool] = False

    def sites(self, host: Host) -> Sequence[Site]:
        return [Site(self.at, 2, signals=(self.signal,))]

    def score(self, tokens: Tokens, site: Site) -> torch.Tensor:
        self.read.append(tokens.signals[self.signal])
        return self.read[-1].flatten(1).sum(1) if self.read[-1].dim() > 1 else self.read[-1]


@pytest.mark.parametrize(("at", "signal"), [("decoder", "last_row"), ("decoder", "received"), ("tower", "cls_row")])
def test_signals_carry_the_gradients_of_eager_attention(at: str, signal: str) -> None:
    """Of one that is trained; others keep nothing for a backward pass, nor does what a checkpoint runs again."""
    model, batch = tiny.model("llava", "eager", fresh=True), tiny.inputs("llava", ROWS)
    visual, index = tiny.visual_mask("llava", batch), 1
    layer = tiny.lm(model).layers[index] if at == "decoder" else tiny.blocks(model)[index]
    query = layer.self_attn.q_proj.weight
    seen: list[torch.Tensor] = []
    hook = layer.self_attn.register_forward_hook(lambda module, args, output: seen.append(output[1]))
    model(**batch)
    hook.remove()
    if signal == "cls_row":
        paid = seen[0][:, :, 0, 1:].permute(0, 2, 1).flatten(0, 1)
    elif signal == "last_row":
        paid = seen[0][:, :, -1].permute(0, 2, 1)[visual]
    else:
        real = batch["attention_mask"][:, None, :, None]
        paid = ((seen[0] * real).sum((1, 2)) / real.sum((1, 2)) / seen[0].shape[1])[visual]
    weights = torch.arange(paid.numel()).view_as(paid).cos()
    (expected,) = torch.autograd.grad((paid * weights).sum(), query)
    assert expected.abs().max() > 0
    Reader.read.clear()
    with foveate.compress(model, Reader(at, signal)):
        model(**batch)
        (gradient,) = torch.autograd.grad((Reader.read[0] * weights).sum(), query)
        torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-6)
        with torch.no_grad():
            model(**batch)
    assert not Reader.read[1].requires_grad
    free = type("Free", (Reader,), {"training_free": True})
    with foveate.compress(model, free(at, signal)):
        model(**batch)
    assert not Reader.read[2].requires_grad


@pytest.mark.parametrize("check", PROPERTIES)
@pytest.mark.parametrize("family", tiny.WHOLE)
def test_contract(family: str, check: Property) -> None:
    check(family, Learned())


def test_hosts_say_how_wide_tokens_are(family: str) -> None:
    seen: dict[str, int] = {}

    @dataclass(frozen=True)
    class Look(Method):
        def sites(self, host: Host) -> Sequence[Site]:
            return [Site("tower", 1), Site("tower_output"), Site("lm_entry")]

        def reduce(self, tokens: Tokens, site: Site) -> Reduction:
            seen[site.at] = tokens.hidden.shape[-1]
            return tokens.keep_best(tokens.hidden[:, 0], 1.0)

    model = tiny.model(family)
    host = host_of(model)
    with torch.no_grad(), foveate.compress(model, Look()):
        model(**tiny.inputs(family, [[1, "image", 2]]))
    assert seen["tower"] == host.tower_width
    assert seen["lm_entry"] == host.width == tiny.lm(model).config.hidden_size
    assert seen["tower_output"] == host.output_width


# -- whose they are -----------------------------------------------------------------------------------------------------


def test_two_handles_share_nothing() -> None:
    method, a, b = Learned(), tiny.model("llava", fresh=True), tiny.model("llava", fresh=True)
    with foveate.compress(a, method) as here, foveate.compress(b, method) as there:
        mine, other = list(here.parameters()), list(there.parameters())
        assert len(mine) == len(other) == 4
        assert not {id(p) for p in mine} & {id(p) for p in other}
        assert not {p.data_ptr() for p in mine} & {p.data_ptr() for p in other}
        assert here.method is method
    with pytest.raises(ConfigError, match="learned has no learned parts here"):
        _ = method.learned
    with foveate.compress(a, foveate.FastV()) as handle:
        assert not list(handle.parameters())


def test_they_follow_the_model() -> None:
    """Onto its device, into its dtype, and to training; a change of the learned parts alone stays."""
    model, batch = tiny.model("llava", fresh=True), tiny.inputs("llava", ROWS)
    with foveate.compress(model.bfloat16(), Learned(at="tower") + Learned()) as handle, torch.no_grad():
        assert {p.dtype for p in handle.parameters()} == {torch.bfloat16}
        model.double()
        model(**batch)
        assert {p.dtype for p in handle.parameters()} == {torch.float64}
        assert not handle.modules["learned"].training
        model.train()
        model(**batch)
        assert handle.modules["learned"].training
        assert handle.modules["learned_2"].training


def test_offloaded_models(tmp_path: Path) -> None:
    """Weights that are on disk between calls are no place for learned parts."""
    accelerate = pytest.importorskip("accelerate")
    model, batch = tiny.model("llava"), tiny.inputs("llava", ROWS)
    source = folder_of(model, Learned(), tmp_path / "run")
    away = tiny.model("llava", fresh=True)
    accelerate.disk_offload(away, str(tmp_path / "disk"), execution_device=torch.device("cpu"))
    with foveate.compress(model, source), foveate.compress(away, source) as handle:
        assert {str(p.device) for p in handle.parameters()} == {"cpu"}
        assert torch.equal(tiny.text_logits(away, batch), tiny.text_logits(model, batch))


def test_sites_on_two_devices_are_refused() -> None:
    class Twice(Learned):
        def sites(self, host: Host) -> Sequence[Site]:
            return Site.cascade("decoder", [(1, 0.5), (3, 0.2)])

    model = tiny.model("llava", fresh=True)
    tiny.lm(model).layers[3].to("meta")
    with pytest.raises(UnsupportedSiteError, match="at decoder 1 the model is on cpu and at decoder 3 on meta"):
        foveate.compress(model, Twice())


# -- sums and folders -----------------------------------------------------------------------------------------------------


def test_sums_with_trained_parts(tmp_path: Path) -> None:
    """Named methods and folders add up, each with its own weights; the sum is saved and restored as one."""
    model, batch = tiny.model("llava"), tiny.inputs("llava", ROWS)
    early = folder_of(model, Learned(at="tower_output", keep=0.6), tmp_path / "early")
    late = folder_of(model, foveate.FastV(keep=0.8) + Learned(layer=4), tmp_path / "late")
    with foveate.compress(model, f"ipcv + {early} + {late}") as handle:
        assert [part.name() for part in handle.method.parts()] == ["ipcv", "learned", "fastv", "learned"]
        assert list(handle.modules) == ["learned", "learned_2"]
        for name, source in (("learned", early), ("learned_2", late)):
            saved = load_file(Path(source) / trained.MODULES)
            for key, value in handle.modules[name].state_dict().items():
                assert torch.equal(value, saved[f"learned.{key}"])
        expected = tiny.text_logits(model, batch)
        handle.save_pretrained(tmp_path / "sum")
    with foveate.compress(model, tmp_path / "sum") as handle:
        assert torch.equal(tiny.text_logits(model, batch), expected)
    with foveate.compress(model, f"learned + {late}") as handle:  # the first one is new
        assert list(handle.modules) == ["learned", "learned_2"]


def test_random_weights_are_said_and_restored_ones_are_not(tmp_path: Path) -> None:
    """Each time that a person attaches them; of a sum, of the parts that nobody has trained."""
    model = tiny.model("llava")
    source = folder_of(model, Learned(), tmp_path / "run")
    learned = trained.adapted(model, source, host_of(model))
    says = r"learned has learned parts with random weights.*`foveate train learned`"
    for attach in (
        lambda: foveate.compress(model, Learned()),
        lambda: foveate.compress(model, f"learned + {source}"),
        lambda: attach_learned(model, Learned(), None),
    ):
        with pytest.warns(UserWarning, match=says) as caught:
            attach().remove()
        assert [each.filename for each in caught] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        foveate.compress(model, foveate.FastV()).remove()
        foveate.compress(model, source).remove()
        foveate.compress(model, f"fastv + {source}").remove()
        attach_learned(model, Learned(keep=0.25), learned).remove()


def test_an_adapter_and_learned_parts_in_one_folder(tmp_path: Path) -> None:
    """LoRA on the model is saved beside them, whoever put it there, and both come back."""
    peft = pytest.importorskip("peft")
    batch, plain = tiny.inputs("llava", ROWS), tiny.model("llava", fresh=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        lora = peft.LoraConfig(r=4, target_modules=r".*language_model.*q_proj", init_lora_weights=False)
        model = peft.get_peft_model(tiny.model("llava", fresh=True), lora).eval()
    with foveate.compress(model, Learned()) as handle:
        handle.save_pretrained(tmp_path / "first")
        expected = tiny.text_logits(model, batch)
    stock, before = tiny.text_logits(plain, batch), state_of(plain)
    with foveate.compress(plain, tmp_path / "first") as handle:
        assert torch.equal(tiny.text_logits(plain, batch), expected)
        handle.save_pretrained(tmp_path / "second")
    assert torch.equal(tiny.text_logits(plain, batch), stock)
    assert state_of(plain) == before
    with foveate.compress(plain, tmp_path / "second"):
        assert torch.equal(tiny.text_logits(plain, batch), expected)


def test_a_method_without_learned_parts_is_restored_as_well(tmp_path: Path) -> None:
    model = tiny.model("llava")
    source = folder_of(model, foveate.FastV(keep=0.3), tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").iterdir()] == [trained.METHOD]
    with foveate.compress(model, source) as handle:
        assert handle.method == foveate.FastV(keep=0.3)


def tensors(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    """A folder whose learned parts are changed."""

    def damage(folder: Path) -> None:
        found = load_file(folder / trained.MODULES)
        change(found)
        save_file(found, folder / trained.MODULES)

    return damage


def said(**changes: Any) -> Callable[[Path], None]:
    """A folder that says something else of its model or files."""

    def damage(folder: Path) -> None:
        content = json.loads((folder / trained.METHOD).read_text())
        for name, value in changes.items():
            (content["model"] if name in content["model"] else content)[name] = value
        (folder / trained.METHOD).write_text(json.dumps(content))

    return damage


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (tensors(lambda t: t.pop("learned.score.bias")), r"1 tensors are missing \(learned.score.bias\)"),
        (tensors(lambda t: t.update({"learned.more": torch.ones(2)})), r"1 have no place \(learned.more\)"),
        (tensors(lambda t: t.update({"other.score": torch.ones(2)})), r"1 have no place \(other.score\)"),
        (
            tensors(lambda t: t.update({"learned.score.weight": torch.ones(1, 96)})),
            r"learned.score.weight is \(1, 96\) there and \(1, 64\) here",
        ),
        (lambda f: (f / trained.MODULES).write_bytes(b"junk"), "cannot read foveate_modules.safetensors"),
        (lambda f: (f / trained.MODULES).unlink(), "has no foveate_modules.safetensors: give what"),
        (said(width=96), "for a language model whose tokens have 96 channels, and this one's have 64"),
        (said(tower_width=96), "for a vision tower whose tokens have 96 channels"),
        (said(layers=7), "is for a llava with 7 decoder layers, and this model is a llava with 6"),
        (said(files=[]), "4 tensors are missing"),
        (said(files=["../secret"]), r"its files are \['../secret'\], expected some of"),
    ],
)
def test_broken_folders_leave_the_model_alone(damage: Callable[[Path], None], sentence: str, tmp_path: Path) -> None:
    model = tiny.model("llava")
    before, source = state_of(model), folder_of(model, Learned(), tmp_path / "run")
    damage(tmp_path / "run")
    with pytest.raises(AdapterError, match=sentence):
        foveate.compress(model, source)
    assert state_of(model) == before


def test_what_was_learned_goes_with_other_options(tmp_path: Path) -> None:
    """Of the same method, alone or in a sum; others stay as they are made."""
    model = tiny.model("llava")
    source = folder_of(model, Learned() + foveate.FastV(), tmp_path / "run")
    learned = trained.adapted(model, source, host_of(model))
    mine = {name.removeprefix("learned."): value for name, value in learned.modules.items()}
    for method in (Learned(keep=0.25), foveate.ToMe() + Learned(at="lm_entry")):
        with attach_learned(model, method, learned) as handle:
            found = dict(handle.modules["learned"].state_dict())
            assert found.keys() == mine.keys()
            assert all(torch.equal(found[name], mine[name]) for name in mine)
    with attach_learned(model, foveate.VisionSelector(), learned) as handle:
        made = dict(handle.modules.state_dict())
    with foveate.compress(model, foveate.VisionSelector()) as handle:
        assert all(torch.equal(value, made[name]) for name, value in handle.modules.state_dict().items())


def test_what_is_missing_or_wrong_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.model("llava")
    source = folder_of(model, Learned(), tmp_path / "run")
    with pytest.raises(ConfigError, match=r"keep: the method in .* has its options already"):
        foveate.compress(model, f"ipcv + {source}", keep=0.5)
    handle = foveate.compress(model, Learned())
    handle.remove()
    assert len(list(handle.parameters())) == 4
    with pytest.raises(UnsupportedModelError, match=r"call save_pretrained\(\) before remove\(\)"):
        handle.save_pretrained(tmp_path / "late")
    with pytest.raises(UnsupportedModelError, match=r"handle was removed: .* attaches the method again"), handle:
        pytest.fail("the stock model would answer")
    (tmp_path / "file").write_text("")
    with foveate.compress(model, Learned()) as handle:
        with pytest.raises(AdapterError, match="is a file: give the name of a folder"):
            handle.save_pretrained(tmp_path / "file")
        with pytest.raises(AdapterError, match="cannot write to"):
            handle.save_pretrained(tmp_path / "file" / "below")

    class Wrong(Learned):
        def modules(self, host: Host) -> Any:
            return nn.Linear(2, 2)

    with pytest.raises(ConfigError, match=r"wrong.modules returned Linear, expected an nn.ModuleDict"):
        foveate.compress(model, Wrong())
    config: Any = model.config
    with pytest.raises(UnsupportedSiteError, match="learned has learned parts, which this engine does not load"):
        make_plan(Learned(), host_of(model), family_of(config), config)
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(AdapterError, match="pip install safetensors"):
        foveate.compress(model, source)

"""The reference model with a pretrained language model, on a language model of two random layers."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_language import fill_cache, make_base

import foveate_reference as reference
from foveate_reference import TASKS, samples
from foveate_reference.exhibits import make_exhibit
from foveate_reference.language import BaseMissingError, base_folder, in_english
from foveate_reference.language import tower as language_tower
from foveate_reference.language.model import IMAGE_ID, load, make_smollm2, make_smollm2_processor, merge_adapter
from foveate_reference.language.packing import Packed, Packer
from foveate_reference.language.sentences import PHRASES
from foveate_reference.language.tower import grow, train_towers
from foveate_reference.language.train import SmolConfig, SmolLearner, train
from foveate_reference.model import export, make_config, make_model
from foveate_reference.model import load as load_reference
from foveate_reference.scenes import split_seed
from foveate_reference.train import TASK_WEIGHT, TrainConfig

SMALL = SmolConfig(
    tower_steps=1,
    align_steps=1,
    answer_steps=2,
    batch_size=1,
    questions=4,
    rank=2,
    checkpoint_every=1,
    validation_images=1,
)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return make_base(tmp_path_factory.mktemp("base"))


def test_every_task_has_a_sentence_and_answers_stay_different() -> None:
    assert tuple(PHRASES) == TASKS
    for sample in samples("test", per_task=1):
        said = in_english(sample)
        assert said.question.endswith("?")
        assert "{" not in said.question
        assert len(set(said.choices)) == len(sample.choices)
        assert said.choices[sample.choices.index(sample.answer)] == said.answer


@pytest.mark.parametrize("kind", ["scene", "pair", "document"])
def test_a_packed_question_is_answered_as_it_is_alone(base: Path, kind: str) -> None:
    model, processor = make_smollm2(base), make_smollm2_processor(base)
    learner = SmolLearner.__new__(SmolLearner)
    learner.model, learner.connector, learner._caught = model, model.model.multi_modal_projector, {}
    learner._pointer_loss = lambda *_: torch.zeros(())
    exhibit = make_exhibit(kind, split_seed("test", 0))
    packer = Packer(processor.tokenizer, TASK_WEIGHT)
    with torch.no_grad():
        states, _ = learner._read(packer([exhibit], 5))
        packed = packer([exhibit], 5)
        for number in range(5):
            alone = packer([type(exhibit)(exhibit.pictures, exhibit.questions[number : number + 1])], 1)
            there, here = packed.blocks[0] == number + 1, alone.blocks[0] == 1
            assert packed.ids[0, there].tolist() == alone.ids[0, here].tolist()
            torch.testing.assert_close(states[0, there], learner._read(alone)[0][0, here], atol=1e-5, rtol=1e-5)


def test_a_packed_sequence_is_what_the_processor_makes(base: Path) -> None:
    processor = make_smollm2_processor(base)
    sample = in_english(samples("test", tasks=["texture"], per_task=1)[0])
    inputs: Any = processor.apply_chat_template(
        sample.messages[:1], tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
    )
    assert (inputs["input_ids"] == IMAGE_ID).sum() == 100
    exhibit = make_exhibit("scene", split_seed("test", 0))
    (question,) = [each for each in exhibit.questions if each.task == "texture"]
    packed = Packer(processor.tokenizer, TASK_WEIGHT)([replace(exhibit, questions=[question])], 1)
    asked = int(packed.asking[0, 0]) + 1
    assert packed.ids[0, :asked].tolist() == inputs["input_ids"][0].tolist()
    assert packed.positions[0].tolist() == list(range(packed.ids.shape[1]))


def test_an_interrupted_run_ends_as_an_uninterrupted_one_and_its_adapter_loads(base, tmp_path, monkeypatch) -> None:
    whole = train(tmp_path / "whole", config=SMALL, base=base, log=lambda _: None)
    step = SmolLearner.answer

    def interrupted(self: SmolLearner, number: int, packed: Packed) -> dict[str, float]:
        if number == 1:
            raise KeyboardInterrupt
        return step(self, number, packed)

    shutil.copytree(tmp_path / "whole" / "tower", tmp_path / "parts" / "tower")
    monkeypatch.setattr(SmolLearner, "answer", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "parts", config=SMALL, base=base, log=lambda _: None)
    monkeypatch.setattr(SmolLearner, "answer", step)
    resumed = train(tmp_path / "parts", config=SMALL, base=base, resume=True, log=lambda _: None)
    model, processor = load(base, whole)
    other, _ = load(base, resumed)
    for (name, one), two in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(one, two), name
    plain = make_smollm2(base)
    # Processors without bfloat16 take ten times as long with it.
    assert {p.dtype for p in plain.parameters()} == {torch.float32}
    changed = "model.language_model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(model.state_dict()[changed], plain.state_dict()[changed])
    sample = in_english(samples("test", tasks=["where"], per_task=1)[0])
    inputs: Any = processor.apply_chat_template(
        sample.messages[:1], tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
    )
    assert model.generate(**inputs).shape[1] > inputs["input_ids"].shape[1]

    further = replace(SMALL, start=str(whole))
    begun = SmolLearner(further, 0, None, base)
    thin = begun.low_rank()[0]["layers.0.mlp.up_proj"]
    change = plain.state_dict()[changed] + 2 * (thin[1] @ thin[0])
    torch.testing.assert_close(change, model.state_dict()[changed])
    assert torch.equal(begun.connector.linear_1.weight, model.model.multi_modal_projector.linear_1.weight)
    assert train(tmp_path / "further", config=further, base=base, log=lambda _: None).is_file()
    assert not (tmp_path / "further" / "tower").exists()
    with pytest.raises(ValueError, match="of rank 2, and this run of 3: say rank=2"):
        SmolLearner(replace(further, rank=3), 0, None, base)


def test_what_is_wrong_with_a_language_model_is_said(base: Path, tmp_path: Path) -> None:
    with pytest.raises(BaseMissingError, match=r"neither config.json nor a single GGUF file.*pip install.*hub"):
        base_folder(tmp_path)
    (tmp_path / "model.gguf").write_bytes(b"no such thing")
    with pytest.raises(BaseMissingError, match="gguf"):
        base_folder(tmp_path)
    (tmp_path / "adapter.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match="is no adapter of smollm2"):
        merge_adapter(make_smollm2(base), tmp_path / "adapter.safetensors")


def test_a_language_model_that_is_not_whole(base: Path, tmp_path: Path) -> None:
    """A download that was interrupted, before a file or in the middle of it; and another model."""
    shutil.copytree(base, tmp_path / "half")
    weights = tmp_path / "half" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(BaseMissingError, match=r"is not whole .* interrupted: delete the folder"):
        make_smollm2(tmp_path / "half")
    weights.unlink()
    with pytest.raises(BaseMissingError, match=r"has no \*.safetensors, as after a download that was interrupted"):
        base_folder(tmp_path / "half")
    shutil.copytree(base, tmp_path / "other")
    (tmp_path / "other" / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(BaseMissingError, match="of type 'gpt2', and SmolLM2-135M-Instruct is a Llama"):
        base_folder(tmp_path / "other")


def test_the_model_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the user's cache, and from a run; what is missing is said with every way to it."""
    monkeypatch.setenv("FOVEATE_CACHE", str(tmp_path))
    monkeypatch.setattr("foveate_reference.language.model.FOLDER", tmp_path / "package")
    with pytest.raises(ValueError, match=r"no weights of smollm2 yet.*train them with .*--recipe smollm2"):
        reference.load("smollm2")
    fill_cache(tmp_path)
    model, processor = reference.load("smollm2", torch.bfloat16)
    assert (model.dtype, model.training) == (torch.bfloat16, False)
    run = tmp_path / "run"
    (run / "tower").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"has not ended: go on with 'foveate train reference --recipe smollm2 --out"):
        reference.load(str(run))
    shutil.copy(tmp_path / "smollm2" / "adapter.safetensors", run)
    again, _ = reference.load(str(run))
    assert torch.equal(
        again.model.multi_modal_projector.linear_1.weight.bfloat16(), model.model.multi_modal_projector.linear_1.weight
    )
    assert processor.tokenizer.convert_tokens_to_ids("<image>") == IMAGE_ID
    shutil.rmtree(next(tmp_path.glob("SmolLM2*")))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr(
        "foveate_reference.language.base.snapshot_download",
        lambda *_, **__: (_ for _ in ()).throw(OSError("no network")),
    )
    with pytest.raises(BaseMissingError, match=r"is not here: install it with 'pip install.*from the hub once"):
        reference.load("smollm2")


def test_a_round_of_the_tower_goes_on_from_the_one_before(tmp_path: Path, monkeypatch) -> None:
    found = []

    def one_round(folder: Path, *, seed: int, config: TrainConfig, start: Callable[[Any], None], **_: Any) -> None:
        model = make_model(make_config("llava", layers=1, hidden=config.hidden, tower_depth=12), seed=seed)
        start(model)
        weight = model.model.vision_tower.encoder.layers[0].mlp.fc2.bias.data
        found.append((seed, weight.clone()))
        weight.add_(1)
        export(model, folder / "model")

    monkeypatch.setattr(language_tower, "train", one_round)
    last = train_towers(tmp_path, 2, SMALL.tower(64), 7, False, "cpu", print)
    assert last == tmp_path / "2" / "model"
    (first, grown), (second, weight) = found
    assert (first, second) == (7, 8)
    assert torch.equal(weight, (grown + 1).bfloat16().float())


def test_a_grown_tower_sees_what_the_one_that_it_grew_from_sees() -> None:
    trained, _ = load_reference("llava")
    grown = make_model(make_config("llava", layers=1, tower_depth=12), seed=0)
    grow(grown)
    pixels = torch.rand(2, 3, 160, 160)
    seen = [model.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-2] for model in (trained, grown)]
    torch.testing.assert_close(seen[1], seen[0])

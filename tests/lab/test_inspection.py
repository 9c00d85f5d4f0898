"""``foveate families --inspect``: what a call of a tiny model tells of a family, and what it says where it tells nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from foveate.errors import FoveateError, InputError, UnsupportedModelError
from foveate.lab.cli import app
from foveate.lab.inspection import proposal, tiny


def test_llava_is_found_out() -> None:
    found = proposal.inspect("llava")
    assert found.family == {"base": "model", "tower_type": "clip_vision_model"}
    assert (found.tower["module"], found.tower["blocks"]) == ("vision_tower", "encoder.layers")
    said = {
        "output": "multi_modal_projector",
        "unit": 1,
        "leading": 1,
        "last_block": 2,
        "layout": "padded",
        "resize": True,
    }
    assert {name: found.tower[name] for name in said} == said
    assert found.tower["grid"] == [(1, 8, 8)] * 2
    text = str(found)
    assert "    model_type='llava',\n" in text
    assert "output='multi_modal_projector',\n" in text
    assert "q_proj" not in text, "what is a default needs no line"


def test_a_packed_tower_is_found_out_by_the_command() -> None:
    ran = CliRunner().invoke(app, ["families", "--inspect", "qwen2_5_vl", "--json"])
    assert "foveate has the type 'qwen2_5_vl' already (Qwen2.5-VL)" in ran.stderr
    assert ran.exit_code == 0, ran.output
    found = json.loads(ran.stdout)["tower"]
    said = {
        "module": "visual",
        "blocks": "blocks",
        "layout": "packed",
        "output": "visual.merger",
        "unit": 4,
        "fused": True,
    }
    assert {name: found[name] for name in said} == said
    assert found["segments"] is True
    assert found["block_args"] == {"cu_seqlens": "seqlens", "position_embeddings": "rotary"}


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("lava", "no model type 'lava' .the nearest is 'llava'"),
        ("gpt2", "no model of type 'gpt2' that takes images and text"),
        ("mllama", "tiny 'mllama'|no function get_image_features|encodes images"),
    ],
)
def test_what_cannot_be_found_out_is_said(name: str, sentence: str) -> None:
    with pytest.raises(FoveateError, match=sentence):
        proposal.inspect(name)


def test_a_folder_may_say_what_it_is(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text("no JSON")
    with pytest.raises(InputError, match="no config that can be read"):
        proposal.inspect(str(tmp_path))
    for nothing in ([1], {"hidden_size": 64}, {"model_type": ["llava"]}):
        file.write_text(json.dumps(nothing))
        with pytest.raises(InputError, match="says no model_type"):
            proposal.inspect(str(file))
    file.write_text(json.dumps({"model_type": "llava", "vision_config": "clip"}))
    with pytest.raises(InputError, match="is no config of a 'llava'"):
        proposal.inspect(str(file))
    own: dict[str, Any] = {"model_type": "mine", "auto_map": {"AutoModel": "mine.Mine"}}
    file.write_text(json.dumps(own))
    with pytest.raises(UnsupportedModelError, match="code of its own"):
        proposal.inspect(str(file))
    file.write_text(json.dumps({"model_type": "llava"}))
    assert proposal._config(str(tmp_path)).to_dict() == tiny.config_of("llava").to_dict()

"""Run VLMEvalKit's benchmarks on a model with a method of foveate attached.

    pip install torchvision                     # of the same build as torch, for the processor of a Qwen
    git clone https://github.com/open-compass/VLMEvalKit && pip install -e VLMEvalKit
    python examples/vlmevalkit.py --kit VLMEvalKit --pretrained Qwen/Qwen2.5-VL-7B-Instruct --method luvc --option keep=0.5 \
        -- --data MMBench_DEV_EN MME --work-dir out

What comes after ``--`` goes to VLMEvalKit's ``run.py`` as it is (``--data``, ``--work-dir``, ``--mode infer`` ...). Several
GPUs: ``torchrun --nproc-per-node 8 examples/vlmevalkit.py ...``, as for ``run.py`` itself. Without ``--method``, the stock
model is measured. Videos are asked about as the frames that a data set makes of them.
"""

from __future__ import annotations

import argparse
import runpy
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch

import foveate
from foveate.errors import FoveateError
from foveate.lab.asker import load_asker
from foveate.lab.chats import Frames, chat
from foveate.lab.options import method_from_words


def model_class() -> type:
    """The wrapper, made when VLMEvalKit can be imported."""
    from vlmeval.vlm.base import BaseModel

    class Foveate(BaseModel):
        """VLMEvalKit asks one question at a time; images stand where they are in the question."""

        INTERLEAVE = True

        def __init__(self, pretrained: str, method: foveate.Method | None, dtype: str, max_new_tokens: int) -> None:
            self.asker = load_asker(pretrained, dtype)
            if method is not None:
                self.asker.handle = foveate.compress(self.asker.model, method)
            self.max_new_tokens = max_new_tokens

        def generate_inner(self, message: list[dict[str, Any]], dataset: str | None = None) -> str:
            """The answer to ``[{"type": "image" or "text", "value": a path or words}]``."""
            content = [
                {"type": part["type"], "text" if part["type"] == "text" else "url": part["value"]} for part in message
            ]
            asked = chat([{"role": "user", "content": content}], Frames())
            return self.asker.generate([asked], {}, self.max_new_tokens)[0].text

    return Foveate


def main() -> None:
    """Register the model with VLMEvalKit, and hand over to its ``run.py``."""
    parser = argparse.ArgumentParser(description="VLMEvalKit with foveate; what follows -- is for its run.py.")
    parser.add_argument("--kit", type=Path, required=True, help="folder of VLMEvalKit, with run.py")
    parser.add_argument("--pretrained", required=True, help="a folder or a hub id")
    parser.add_argument("--method", help="name of a method, or a sum: ipcv+adsc")
    parser.add_argument("--option", action="append", default=[], help="name=value, repeatable")
    parser.add_argument("--name", default="foveate", help="of the model in VLMEvalKit's files")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--max-new-tokens", type=int, default=1024)
    words, rest = sys.argv[1:], []
    if "--" in words:
        words, rest = words[: words.index("--")], words[words.index("--") + 1 :]
    given = parser.parse_args(words)
    script = given.kit / "run.py"
    if not script.is_file():
        parser.error(f"--kit {str(given.kit)!r}: there is no run.py in it; give the folder of a VLMEvalKit checkout")
    if "--model" in rest:
        parser.error("--model after --: the model is given by --pretrained, and named by --name")
    try:
        method = None if given.method is None else method_from_words(given.method, None, given.option, None)
    except FoveateError as error:
        parser.error(str(error))
    sys.path.insert(0, str(given.kit))
    from vlmeval.config import supported_VLM

    supported_VLM[given.name] = partial(model_class(), given.pretrained, method, given.dtype, given.max_new_tokens)
    sys.argv = [str(script), "--model", given.name, *rest]
    with torch.inference_mode():
        runpy.run_path(str(script), run_name="__main__")


if __name__ == "__main__":
    main()

"""The same answers from a compiled engine and from two processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")

# In a process of its own: what is compiled, and who works, is settled when vLLM starts.
SCRIPT = """
import json, sys
import served, foveate
from test_engine import FAMILY, many

if __name__ == "__main__":
    method, options = foveate.method_from_dict(sys.argv[1]), json.loads(sys.argv[2])
    wanted = many(6)
    want = served.expected(FAMILY, method, wanted)
    with served.engine(FAMILY, method, **options) as llm:
        found = [served.ask(llm, wanted) for _ in range(2)]
    print("AGREE", [all(a.agrees(b) for a, b in zip(each, want, strict=True)) for each in found])
"""
MODES = {
    "compiled": (dict(enforce_eager=False), dict(OMP_NUM_THREADS="2")),
    "two processes": (
        dict(tensor_parallel_size=2),
        dict(OMP_NUM_THREADS="1", VLLM_ENABLE_V1_MULTIPROCESSING="1", VLLM_CPU_OMP_THREADS_BIND="0|1"),
    ),
}
INNER = '{"method": "fastv", "keep": 0.5}'  # reads attention of all heads of the language model
METHODS = ['{"method": "luvc"}', INNER]
HEADS = '{"method": "visionzip", "keep": 0.5}'  # reads keys and attention of all heads of the tower


def leaves_to_the_matrix(method: str, mode: str) -> bool:
    """A method that acts inside without reading anything has nothing that one which reads has not."""
    return method not in (INNER, HEADS)


@pytest.mark.parametrize(("method", "mode"), [*product(METHODS, MODES), (HEADS, "two processes")])
def test_modes(mode: str, method: str, tmp_path: Path) -> None:
    options: dict[str, Any]
    options, environment = MODES[mode]  # type: ignore[assignment]
    if "fastv" in method:
        options = {**options, "enable_chunked_prefill": False}
    script, tests = tmp_path / "ask.py", Path(__file__).parent
    script.write_text(SCRIPT)
    path = os.pathsep.join(map(str, (tests, tests.parent, *filter(None, [os.environ.get("PYTHONPATH")]))))
    command = [sys.executable, str(script), method, json.dumps(options)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=500, env={**os.environ, "PYTHONPATH": path, **environment}
    )
    assert "AGREE [True, True]" in done.stdout, done.stdout[-2000:] + done.stderr[-4000:]

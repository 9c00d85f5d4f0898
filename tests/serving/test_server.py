"""The real server: `foveate serve`, asked over HTTP by the OpenAI client, as its users do."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")

import openai
import saved
from served import folder

import foveate

COMMAND = (sys.executable, "-m", "foveate", "serve")
SMALL = ("--dtype", "float32", "--enforce-eager", "--max-model-len", "1024", "--max-num-seqs", "8")
CHARACTERS = {"max_tokens": 6, "temperature": 0}


class Server:
    """One that runs."""

    def __init__(self, port: int, log: Path) -> None:
        self.port, self.log = port, log
        self.client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)

    def ask(self, *content: Any, **more: Any) -> Any:
        """A chat of one message."""
        parts = [{"type": "text", "text": part} if isinstance(part, str) else part for part in content]
        (model,) = self.client.models.list().data
        return self.client.chat.completions.create(
            model=model.id,
            messages=[{"role": "user", "content": parts}],  # type: ignore[misc,list-item]
            **CHARACTERS,  # type: ignore[arg-type]
            **more,
        )

    def post(self, *content: Any, **more: Any) -> tuple[int, str]:
        """The same without the client, which writes no NaN: status, and what an error says."""
        parts = [{"type": "text", "text": part} if isinstance(part, str) else part for part in content]
        body = json.dumps({"messages": [{"role": "user", "content": parts}], **CHARACTERS, **more}).encode()
        asks = urllib.request.Request(f"http://127.0.0.1:{self.port}/v1/chat/completions", body)
        asks.add_header("Content-Type", "application/json")
        try:
            return urllib.request.urlopen(asks).status, ""
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())["error"]["message"]

    def page(self) -> str:
        """What Prometheus reads."""
        text: str = urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics").read().decode()
        return text

    def metrics(self) -> dict[str, float]:
        """Visual tokens by stage."""
        text = self.page()
        found = re.findall(r'foveate_visual_tokens_total\{budget="0.5".*profile="",stage="(\w+)"\} (\S+)', text)
        return {stage: float(value) for stage, value in found}


def png(height: int, width: int, seed: int = 0) -> bytes:
    """A picture as a file."""
    data = io.BytesIO()
    saved.picture(height, width, seed).save(data, "PNG")
    return data.getvalue()


def part(data: bytes) -> dict[str, Any]:
    """What claims to be an image, as a part of a message."""
    return {"type": "image_url", "image_url": {"url": "data:image/png;base64," + base64.b64encode(data).decode()}}


def image(height: int, width: int, seed: int = 0) -> dict[str, Any]:
    """A picture as a part of a message."""
    return part(png(height, width, seed))


def empty() -> bytes:
    """An image of no width, which no library would write."""
    data = bytearray(png(8, 8))
    data[16:20] = bytes(4)
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


BROKEN = {
    "no image": part(b"not an image"),
    "nothing": part(b""),
    "half of one": part(png(64, 64)[:2000]),
    "no width": part(empty()),
    "a line": image(1, 500),  # the model takes no image that is 200 times as wide as high
    "not base64": {"type": "image_url", "image_url": {"url": "data:image/png;base64,@@@"}},
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("server") / "log"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "VLLM_LOGGING_LEVEL": "INFO", "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    command = [*COMMAND, str(folder("qwen2_5_vl")), "--method", "luvc", "--keep", "0.5", *SMALL, "--port", str(port)]
    command += ["--limit", "0.8", "--profile", "fast=divprune,keep=0.3", "--profile", "exact=none"]
    command += ["--trust-request-mm-kwargs"]
    with log.open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=environment)
    try:
        for _ in range(240):
            time.sleep(1)
            assert process.poll() is None, log.read_text()[-4000:]
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health")
                break
            except OSError:
                continue
        yield Server(port, log)
    finally:
        process.terminate()
        process.wait(60)


def test_images_are_answered_with_fewer_tokens(server: Server) -> None:
    before = server.metrics()
    plain, short = server.ask("the cat"), server.ask(image(48, 48), "the cat")
    assert short.choices[0].message.content == server.ask(image(48, 48), "the cat").choices[0].message.content
    after = server.metrics()
    spent = (after["prompt"] - before["prompt"]) / 2
    assert after["images"] - before["images"] == 2 * 36
    assert 0 < spent < 0.7 * 36  # half on average over layers, of which the last has none
    around = short.usage.prompt_tokens - plain.usage.prompt_tokens - spent
    assert around in (2, 3)  # the start and the end of an image, and a space
    assert after["last_layer"] == before["last_layer"] == 0


def test_the_client_of_the_examples(server: Server, tmp_path: Path) -> None:
    (tmp_path / "one.png").write_bytes(png(48, 48))
    example = Path(__file__).parents[2] / "examples" / "serve_client.py"
    words = [
        "--url",
        f"http://127.0.0.1:{server.port}/v1",
        "--image",
        "one.png",
        "--prompt",
        "the cat",
        "--max-tokens",
        "6",
    ]
    command = [sys.executable, str(example), *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    want = server.ask(image(48, 48), "the cat")
    assert done.stdout.startswith(f"{want.choices[0].message.content}\n")
    assert done.stdout.endswith(f" {want.usage.prompt_tokens}\n")


def test_a_broken_image_hurts_nobody_else(server: Server) -> None:
    """Each kind of them several times, alone in a message and beside a good one, while others ask."""
    good = [(image(48, 48), "the cat"), (image(40, 24), image(24, 32), "the dog"), (image(1, 1), "the bird")]
    bad = [(each, "the cat") for each in BROKEN.values()] + [(image(48, 48), each, "?") for each in BROKEN.values()]
    want = [server.ask(*content).choices[0].message.content for content in good]

    def one(content: tuple[Any, ...]) -> Any:
        if content in good:
            return server.ask(*content).choices[0].message.content == want[good.index(content)]
        with pytest.raises(openai.BadRequestError):
            server.ask(*content)
        return True

    mixed = [content for i, each in enumerate(bad + bad) for content in (each, good[i % 3])]
    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(one, mixed))


WRONG: dict[str, tuple[Any, str]] = {
    "above the limit": ({"keep": 0.9}, '"keep" is 0.9, expected a number above 0, up to 0.8'),
    "nothing": ({"keep": 0}, "expected a number above 0"),
    "no number": ({"keep": "half"}, "\"keep\" is 'half', expected a number"),
    "not a number": ({"keep": float("nan")}, '"keep" is nan, expected a number'),
    "no object": (0.3, "expected an object such as"),
    "another key": ({"kepe": 0.3}, "has no 'kepe'; it has \"keep\""),
    "no such profile": ({"profile": "fats"}, "(the nearest is 'fast'); this server has exact, fast"),
}


def test_a_prompt_has_a_budget_of_its_own(server: Server) -> None:
    """Of one image, asked about with budgets in turn, so that caches of encoder and prefixes know of each."""

    def ask(keep: float | None) -> tuple[str, int]:
        body = {"mm_processor_kwargs": {"foveate": {"keep": keep}}} if keep else {}
        found = server.ask(image(48, 48, seed=7), "the cat", extra_body=body)
        return found.choices[0].message.content, found.usage.prompt_tokens

    before = server.page()
    first = [ask(keep) for keep in (None, 0.3, 0.8)]
    assert first == [ask(keep) for keep in (None, 0.3, 0.8)]
    lengths = [n for _, n in first]
    assert lengths[1] < lengths[0] < lengths[2]
    count = 'foveate_visual_tokens_total{budget="0.3",method="luvc",profile="",stage="images"}'
    assert count not in before
    assert f"{count} 72.0" in server.page()


def test_a_prompt_asks_for_a_profile(server: Server) -> None:
    """All of an image is in the prompt with ``exact``, and a third with ``fast``; metrics say whose it was."""

    def ask(name: str) -> int:
        body = {"mm_processor_kwargs": {"foveate": {"profile": name}}}
        found: int = server.ask(image(48, 48, seed=8), "the cat", extra_body=body).usage.prompt_tokens
        return found

    assert ask("exact") - ask("fast") == 36 - round(0.3 * 36)
    page = server.page()
    for name, method, budget, stage, count in (
        ("exact", "none", 1, "last_layer", 36),
        ("fast", "divprune", 0.3, "images", 36),
        ("fast", "divprune", 0.3, "prompt", 11),
    ):
        labels = f'budget="{budget}",method="{method}",profile="{name}",stage="{stage}"'
        assert f"foveate_visual_tokens_total{{{labels}}} {count}.0" in page


def test_a_wrong_budget_hurts_nobody_else(server: Server) -> None:
    want = server.ask(image(48, 48), "the cat").choices[0].message.content

    def one(wrong: tuple[Any, str] | None) -> Any:
        if wrong is None:
            return server.ask(image(48, 48), "the cat").choices[0].message.content == want
        status, says = server.post(image(24, 32), "?", mm_processor_kwargs={"foveate": wrong[0]})
        return status == 400 and wrong[1] in says

    mixed = [each for wrong in WRONG.values() for each in (wrong, None)]
    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(one, mixed))


def test_it_says_what_it_serves(server: Server) -> None:
    line = next(line for line in server.log.read_text().splitlines() if "foveate serves" in line)
    assert "; profile exact: no method; profile fast: DivPrune(keep=0.3), which acts before the language" in line
    assert "Qwen2_5_VLForConditionalGeneration with LUVC(keep=0.5), which acts in the vision tower, before" in line
    assert (
        "inside the language model (before layer 5) and keeps 0.5 (tokens), up to 0.8 where a prompt asks for it"
        in line
    )


def test_the_files_of_a_deployment(server: Server) -> None:
    """The script says that it is ready, and with what; the dashboard shows nothing that is not there."""
    deploy = Path(__file__).parents[2] / "deploy"
    words = [sys.executable, str(deploy / "ready.py")]
    done = subprocess.run([*words, f"http://127.0.0.1:{server.port}"], capture_output=True, text=True, check=True)
    own, exact, fast = done.stdout.splitlines()
    assert own.startswith('ready: luvc, keep 0.5 {"method": "luvc"')
    assert exact.startswith("profile exact: none, keep 1 {")
    assert fast.startswith('profile fast: divprune, keep 0.3 {"method": "divprune"')
    nobody = subprocess.run([*words, "http://127.0.0.1:9"], capture_output=True, text=True, check=False)
    assert (nobody.returncode, nobody.stdout) == (1, "")
    assert "http://127.0.0.1:9 is not ready: " in nobody.stderr
    shown = set(re.findall(r"\b(?:vllm:|foveate_)\w+", (deploy / "dashboard.json").read_text()))
    there = set(re.findall(r"^((?:vllm:|foveate_)\w+)", server.page(), re.M))
    assert len(shown) > 9
    assert shown <= there


def test_labels_are_few_and_short(server: Server) -> None:
    """A series a method, budget and stage; the options are in one place, whole."""
    server.ask(image(48, 48), "the cat")
    labels = [each for each in re.findall(r"foveate_visual_tokens_total\{(.*?)\}", server.page()) if '"0.5"' in each]
    assert sorted(labels) == [
        f'budget="0.5",method="luvc",profile="",stage="{stage}"' for stage in ("images", "last_layer", "prompt")
    ]
    (told,) = re.findall(
        r'foveate_method_info\{budget="0.5",config="(.*)",method="luvc",profile=""\} 1.0', server.page()
    )
    assert foveate.method_from_dict(told.replace('\\"', '"')) == foveate.LUVC(keep=0.5)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--method", "luvc", "--keep", "2"), "keep=2.0 is not a ratio"),
        (("--method", "fastv"), "add --no-enable-chunked-prefill"),
    ],
)
def test_mistakes_are_one_sentence_at_the_start(words: tuple[str, ...], sentence: str) -> None:
    done = subprocess.run(
        [*COMMAND, str(folder("qwen2_5_vl")), *words, *SMALL], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 2
    assert sentence in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr

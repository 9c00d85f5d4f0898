"""The page as text: whole, self-contained, and inert whatever words are on it."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from pages import METHODS, NASTY
from PIL import Image

from foveate.lab.report import page, plots
from foveate.lab.story import Content


class Parsed(HTMLParser):
    """Elements with their attributes, and the text of style sheets and scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.elements and self.elements[-1][0] in ("script", "style", "title") and data.strip():
            self.texts.append((self.elements[-1][0], data))


@pytest.fixture(scope="module")
def text(content: Content, results: Path) -> str:
    return page.render(content, [plots.of_results(results)])


def test_nothing_is_asked_of_anybody(text: str) -> None:
    parsed = Parsed(text)
    assert [tag for tag, _ in parsed.elements].count("script") == 2
    for _, attributes in parsed.elements:
        assert not {"src", "srcset", "action", "onload", "onerror", "style"} & set(attributes)
        assert (attributes.get("href") or "data:").startswith("data:")
    style = next(data for tag, data in parsed.texts if tag == "style")
    assert "url(" not in style
    assert "@import" not in style
    script = parsed.texts[-1][1]
    for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "fetch(", "XMLHttpRequest"):
        assert word not in script
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text)


def test_the_policy_lets_only_the_pages_own_script_run(text: str) -> None:
    parsed = Parsed(text)
    (policy,) = (attributes["content"] for _, attributes in parsed.elements if "http-equiv" in attributes)
    assert policy is not None
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    for tag in ("style", "script"):
        data = [data for name, data in parsed.texts if name == tag][-1]
        digest = base64.b64encode(hashlib.sha256(data.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


def test_words_stay_words(text: str, content: Content) -> None:
    """A prompt that ends a script is data, and comes out as it went in."""
    assert NASTY not in text
    assert "<img" not in text
    assert "\u2028" not in text
    data = json.loads(next(data for tag, data in Parsed(text).texts if tag == "script"))
    assert data["cases"][2]["prompt"] == NASTY
    assert data["cases"][2]["name"] == content.cases[2].name
    assert data["cases"][2]["told"][0]["answer"] == f"{NASTY} too"


def test_a_model_name_is_escaped_in_the_title(content: Content) -> None:
    named = Content("</title><b>{{script}}", content.family, content.methods, content.cases[:1])
    parsed = Parsed(page.render(named))
    assert not any(tag == "b" for tag, _ in parsed.elements)
    assert ("title", "foveate: </title><b>{{script}}") in [
        (tag, data) for tag, data in parsed.texts if tag == "title"
    ] or "&lt;/title&gt;&lt;b&gt;{{script}}" in page.render(named)


def test_the_data_goes_there_and_back(content: Content) -> None:
    data = page.to_dict(content, [], [])
    assert json.loads(page._inert(data)) == json.loads(json.dumps(data))
    assert [method["label"] for method in data["methods"]] == list(METHODS)
    assert len(data["pictures"]) == 2, "the same image is there once"
    case = data["cases"][0]
    for entry, (label, told) in zip(case["told"], content.cases[0].told.items()):
        assert entry["tokens"] == told.story.tokens, label
        assert len(entry["shown"]) == len(data["steps"]) == len(entry["flops"])
        for panels in entry["shown"]:
            for number, picture in panels:
                frame = entry["frames"][number]
                assert len(frame["states"]) == frame["height"] * frame["width"]
                assert picture == case["image"]
        for frame in entry["frames"]:
            assert ("owners" in frame) == ("marks" in frame) == ("m" in frame["states"])


def test_pictures_are_small_enough_and_sharp_enough(content: Content) -> None:
    small, wide = page.to_dict(content, [], [])["pictures"]
    assert (small["width"], small["height"]) == (160, 160)
    assert (wide["width"], wide["height"]) == (640, 320)
    kind, _, data = small["src"].partition(",")
    assert kind == "data:image/png;base64"
    image = Image.open(io.BytesIO(base64.b64decode(data)))
    assert (np.asarray(image) == np.asarray(content.cases[0].image)).all()


def test_a_photo_is_a_jpeg() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (500, 640, 3), dtype=np.uint8)
    pictures = page._Pictures()
    assert pictures.add(Image.fromarray(noise)) == pictures.add(Image.fromarray(noise)) == 0
    assert pictures.found[0]["src"].startswith("data:image/jpeg;base64,")


def test_the_file_is_the_page(content: Content, tmp_path: Path) -> None:
    path = page.write(tmp_path / "new" / "folder" / "report.html", content)
    assert path.read_text(encoding="utf-8") == page.render(content)
    assert [each.name for each in path.parent.iterdir()] == ["report.html"]

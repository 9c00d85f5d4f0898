"""The page in a real Chromium, from a file: it moves, it speaks, it fits, and what is written on it stays writing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import browsers
import pytest
from browsers import DESKTOP, PHONE
from pages import METHODS, NASTY
from PIL import Image

from foveate.lab.report import page, plots
from foveate.lab.report.bench import of_bench
from foveate.lab.story import Content
from foveate.lab.story.view import Frame

browsers.skip_without()

SHARE = {"label": "share", "percent": True}
BENCH = {
    "plots": [
        {
            "title": f"prefill {NASTY}",
            "x": {"label": "visual tokens", "log": True},
            "y": {"label": "seconds", "log": True},
            "series": [{"label": NASTY, "points": [[256, 0.1], [1024, 0.5, 0.4, 0.6], [16384, 30]]}],
        },
        {
            "title": "one point",
            "x": {"label": "x"},
            "y": {"label": "y"},
            "series": [{"label": "a", "points": [[1, 1]]}],
        },
        {
            "title": "same cost",
            "x": SHARE,
            "y": SHARE,
            "series": [{"label": "a", "points": [[0.5, 0.2], [0.503, 0.9]]}],
        },
    ]
}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with browsers.running() as found:
        yield found


@pytest.fixture(scope="module")
def address(content: Content, results: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("page")
    (folder / "bench.json").write_text(json.dumps(BENCH))
    curves, bench = [plots.of_results(results)], of_bench(folder / "bench.json")
    return page.write(folder / "a page.html", content, curves, bench).as_uri()


@pytest.fixture(scope="module")
def extreme(content: Content, results: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A page of a long question, long words, a tall image, a wide one of many tokens, and the curves of every method."""
    case, label = content.cases[0], METHODS[0]
    told = case.told[label]
    many = replace(told.story, frames=tuple(Frame(20, 48, "a" * 960) for _ in told.story.frames))
    tall, wide = (Image.new("RGB", size, (30, 120, 90)) for size in ((200, 1000), (1000, 400)))
    long = "What is left of the picture's middle? " * 100
    cases = (
        replace(case, name="tall", image=tall, prompt=long, dense="magenta" * 20, told={label: told}),
        replace(case, name="wide", image=wide, told={label: replace(told, story=many)}),
    )
    path = tmp_path_factory.mktemp("extreme") / "page.html"
    curves = [plots.of_results(results.with_name("reference-qwen2_5_vl.json"))]
    return page.write(path, replace(content, methods={label: content.methods[label]}, cases=cases), curves).as_uri()


@pytest.fixture
def opened(browser: Any, address: str, request: pytest.FixtureRequest) -> Iterator[Any]:
    """The page, on a desktop or as the test's parameter says; whatever it complains about, or asks for, fails the test."""
    context = browser.new_context(**getattr(request, "param", DESKTOP), offline=True)
    tab = context.new_page()
    heard: list[str] = []
    tab.on("console", lambda message: heard.append(message.text))
    tab.on("pageerror", lambda error: heard.append(str(error)))
    tab.on(
        "request",
        lambda asked: (
            heard.append(asked.url) if asked.url.partition("#")[0] != address and asked.url[:5] != "data:" else None
        ),
    )
    tab.goto(f"{address}#step=1")
    tab.wait_for_selector(".card canvas")
    yield tab
    assert heard == []
    context.close()


def pictures(tab: Any) -> list[str]:
    found: list[str] = tab.eval_on_selector_all(".card canvas", "all => all.map(each => each.toDataURL())")
    return found


def test_arrow_keys_walk_through_the_model(opened: Any, content: Content) -> None:
    slider = opened.get_by_role("slider", name="Step of the forward pass")
    steps = next(iter(content.cases[0].told.values())).story.steps
    slider.focus()
    seen = []
    for number, step in enumerate(steps):
        assert slider.input_value() == str(number)
        assert slider.get_attribute("aria-valuetext") == step.name
        assert opened.inner_text("#step").startswith(step.name)
        seen.append(pictures(opened))
        slider.press("ArrowRight")
    stock, *methods = zip(*seen)
    assert len(set(stock)) == 1, "the stock model keeps everything"
    for label, frames in zip(METHODS, methods):
        story = content.cases[0].told[label].story
        changes = [a != b for a, b in zip(story.shown, story.shown[1:-1])]  # at the cache nothing has to change
        assert [a != b for a, b in zip(frames, frames[1:-1])] == changes, label
        assert label == "downsample" or any(changes)
    slider.press("Home")
    assert pictures(opened) == seen[0]
    slider.press("ArrowLeft")
    assert slider.input_value() == "0"


def test_buttons_mouse_and_bars_move_the_same_slider(opened: Any) -> None:
    slider = opened.locator("#slider")
    assert opened.get_by_role("button", name="Step back").is_disabled()
    opened.get_by_role("button", name="Step on").click()
    assert slider.input_value() == "1"
    box = slider.bounding_box()
    opened.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    assert int(slider.input_value()) in (8, 9)
    before = pictures(opened)
    chart = opened.locator(".bars svg").nth(3)
    chart.click(position={"x": 3, "y": 10})
    assert slider.input_value() == "0"
    assert pictures(opened) != before


def test_cards_say_what_happens_and_what_was_answered(opened: Any) -> None:
    opened.locator("#slider").fill("4")
    luvc = opened.get_by_role("article", name="luvc")
    assert "oim merges 100 → 81 tokens" in luvc.inner_text()
    assert "81 of 100" in luvc.inner_text()
    assert "at Vision block 3: " in luvc.locator("canvas").get_attribute("aria-label")
    assert "= same answer" in luvc.inner_text()
    opened.get_by_role("button", name="where is it ?").click()
    assert "≠ differs" in luvc.inner_text()
    assert "✗ the right answer is red" in luvc.inner_text()
    assert opened.locator("td.differs").count() == 2 * len(METHODS)
    legend = opened.inner_text("#legend")
    for word in ("alive", "merged", "parked", "restored", "dropped", "withdrawn"):
        assert word in legend
    assert "hidden" not in legend, "no method here hides anything"


def test_questions_and_images_by_keyboard(opened: Any) -> None:
    opened.locator("#images button").first.focus()
    first = pictures(opened)
    opened.keyboard.press("ArrowRight")
    assert opened.locator("#images button").nth(1).get_attribute("aria-pressed") == "true"
    assert pictures(opened) != first
    style = opened.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert style == "solid", "where the focus is can be seen"
    opened.keyboard.press("ArrowLeft")
    opened.locator("#questions button").first.focus()
    opened.keyboard.press("ArrowDown")
    assert opened.locator("#questions [aria-pressed=true]").inner_text().startswith("where is it ?")


def test_words_are_shown_and_never_run(opened: Any) -> None:
    opened.locator("#images button").nth(1).click()
    shown = " ".join(NASTY.split())
    assert shown in " ".join(opened.inner_text("#questions").split())
    assert shown in " ".join(opened.inner_text("#cards").split())
    assert shown in " ".join(opened.inner_text("#bench").split())
    assert opened.evaluate("window.hacked") is None
    assert opened.locator("img[src=x], td script, .card script").count() == 0


def test_the_policy_stops_other_scripts(browser: Any, address: str) -> None:
    """Even if a script got onto the page, it would not run."""
    tab = browser.new_page()
    refused: list[str] = []
    tab.on("console", lambda message: refused.append(message.text))
    tab.goto(address)
    tab.evaluate("document.body.append(Object.assign(document.createElement('script'), {text: 'window.hacked = 1'}))")
    assert tab.evaluate("window.hacked") is None
    assert any("Content Security Policy" in text for text in refused)
    tab.close()


@pytest.mark.parametrize("opened", [PHONE], indirect=True)
def test_a_phone_never_scrolls_sideways(opened: Any) -> None:
    opened.eval_on_selector_all("details", "all => all.forEach(each => each.open = true)")
    for number in range(2):
        opened.locator("#images button").nth(number).click()
        for question in range(opened.locator("#questions button").count()):
            opened.locator("#questions button").nth(question).click()
            assert opened.evaluate("document.documentElement.scrollWidth") <= 360
    boxes = opened.eval_on_selector_all(".card", "all => all.map(each => each.getBoundingClientRect().right)")
    assert max(boxes) <= 360
    for button in ("#back", "#on"):
        box = opened.locator(button).bounding_box()
        assert min(box["width"], box["height"]) >= 44, "a finger can hit it"


@pytest.mark.parametrize("shape", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_long_words_and_tall_images_leave_room(browser: Any, extreme: str, shape: dict[str, Any]) -> None:
    tab = browser.new_page(**shape)
    tab.goto(extreme)
    tab.wait_for_selector(".card canvas")
    height = "each => each.getBoundingClientRect().height"
    assert tab.eval_on_selector("#questions button", height) < 150
    assert tab.locator("#questions button").inner_text().count("middle?") == 100, "a screen reader has all of it"
    assert tab.eval_on_selector("tbody tr", height) < 400
    tab.locator("tbody summary").click()
    assert tab.locator("tbody details").inner_text().count("middle?") > 100
    assert tab.eval_on_selector(".card canvas", height) <= 560
    box = tab.locator(".card canvas").first.bounding_box()
    assert box["height"] == pytest.approx(5 * box["width"], rel=0.02), "not squeezed"
    assert tab.evaluate("document.documentElement.scrollWidth") <= shape["viewport"]["width"]
    tab.close()


@pytest.mark.parametrize("shape", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_cells_can_be_told_apart(browser: Any, extreme: str, shape: dict[str, Any]) -> None:
    tab = browser.new_page(**shape)
    tab.goto(extreme)
    tab.locator("#images button").nth(1).click()
    assert tab.locator(".card canvas").nth(1).bounding_box()["width"] / 48 > 6
    tab.close()


@pytest.mark.parametrize("opened", [PHONE], indirect=True)
def test_no_column_is_narrower_than_a_word(opened: Any) -> None:
    count = """all => all.map((each) => {
      const range = document.createRange();
      range.selectNodeContents(each);
      return [each.textContent, range.getClientRects().length];
    })"""
    lines = dict(opened.eval_on_selector_all("#table th", count))
    assert {label: lines[label] for label in METHODS} == dict.fromkeys(METHODS, 1)


@pytest.mark.parametrize("opened", [DESKTOP, PHONE], indirect=True, ids=["desktop", "phone"])
def test_the_focus_covers_no_words(opened: Any) -> None:
    slider = opened.locator("#slider")
    slider.press("ArrowRight")
    box = slider.bounding_box()
    reach = slider.evaluate(
        "each => parseFloat(getComputedStyle(each).outlineOffset) + parseFloat(getComputedStyle(each).outlineWidth)"
    )
    words, dots = opened.locator("#step").bounding_box(), opened.locator("#ticks").bounding_box()
    assert slider.evaluate("each => getComputedStyle(each).outlineStyle") == "solid"
    assert words["y"] + words["height"] <= box["y"] - reach
    assert box["y"] + box["height"] + reach <= dots["y"]


def test_a_step_is_spoken_once(opened: Any) -> None:
    """The slider says its step itself; after a press of a button nobody else does."""
    opened.locator("#slider").press("ArrowRight")
    assert opened.get_attribute("#step", "aria-live") == "off"
    opened.get_by_role("button", name="Step on").press("Enter")
    assert opened.get_attribute("#step", "aria-live") == "polite"


@pytest.mark.parametrize("opened", [PHONE], indirect=True)
def test_on_a_phone_pictures_come_before_the_legend(opened: Any) -> None:
    assert not opened.locator("#legend").is_visible()
    opened.get_by_text("What the marks mean").click()
    assert "outlined, what the stock model does" in opened.inner_text("#legend")


CONTRAST = """() => {
  const light = (colour) => {
    const [r, g, b] = colour.match(/[0-9.]+/g).slice(0, 3).map((n) => n / 255)
      .map((n) => (n <= 0.03928 ? n / 12.92 : ((n + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (node) => {
    for (; node; node = node.parentElement) {
      const colour = getComputedStyle(node).backgroundColor;
      if (!/, 0\\)$/.test(colour)) return colour;
    }
    return "rgb(255, 255, 255)";
  };
  const texts = [...document.querySelectorAll("body *")].filter((node) => node.checkVisibility() &&
    !["SCRIPT", "STYLE"].includes(node.tagName) && !node.disabled &&
    [...node.childNodes].some((child) => child.nodeType === 3 && child.textContent.trim()));
  return texts.map((node) => {
    const style = getComputedStyle(node), front = node instanceof SVGElement ? style.fill : style.color;
    const [a, b] = [light(front), light(behind(node))].sort((x, y) => y - x);
    return [(a + 0.05) / (b + 0.05), node.outerHTML.slice(0, 80)];
  });
}"""


@pytest.mark.parametrize("opened", [DESKTOP, {**DESKTOP, "color_scheme": "dark"}], indirect=True, ids=["light", "dark"])
def test_text_can_be_read(opened: Any) -> None:
    found = opened.evaluate(CONTRAST)
    assert len(found) > 100
    assert [(html, ratio) for ratio, html in found if ratio < 4.5] == []


@pytest.mark.parametrize("opened", [DESKTOP, {**DESKTOP, "color_scheme": "dark"}], indirect=True, ids=["light", "dark"])
def test_bars_can_be_seen(opened: Any) -> None:
    """What a method spends, and the outline of what the stock model does: three to one, as of anything but text."""
    parts = CONTRAST.split("const texts")[0]
    ratio = f"""(name) => {{ {parts.removeprefix("() => {")}
      const node = document.querySelector(`.card .${{name}}`), style = getComputedStyle(node);
      const front = name === "full" ? style.stroke : style.fill;
      const [a, b] = [light(front), light(behind(node.closest(".card")))].sort((x, y) => y - x);
      return (a + 0.05) / (b + 0.05);
    }}"""
    assert min(opened.evaluate(ratio, name) for name in ("part", "full", "here")) >= 3


def test_it_opens_where_there_is_something_to_see(browser: Any, address: str, content: Content) -> None:
    tab = browser.new_page()
    tab.goto(address)
    tab.wait_for_selector(".card canvas")
    stories = [told.story for told in content.cases[0].told.values()]
    plain = [
        all({*story.frames[number].states} == {"a"} and not story.frames[number].resized for number in story.shown[i])
        for i in range(len(stories[0].steps))
        for story in stories
    ]
    first = next(i for i in range(len(stories[0].steps)) if not all(plain[i * len(stories) : (i + 1) * len(stories)]))
    assert tab.locator("#slider").input_value() == str(first)
    stock, *methods = pictures(tab)
    assert any(picture != stock for picture in methods)
    tab.close()


def test_the_address_says_what_is_looked_at(opened: Any, address: str) -> None:
    slider = opened.locator("#slider")
    opened.locator("#images button").nth(1).click()
    opened.wait_for_timeout(600)
    along = "each => [4, 6].forEach((n) => { each.value = n; each.dispatchEvent(new Event('input')); })"
    slider.evaluate(along)  # one move
    assert opened.evaluate("location.hash") == "#image=2&question=1&step=7"
    link = opened.url
    opened.go_back()
    assert slider.input_value() == "0"
    assert opened.locator("#images button").nth(1).get_attribute("aria-pressed") == "true"
    opened.go_back()
    assert opened.locator("#images button").first.get_attribute("aria-pressed") == "true"
    opened.go_forward()
    opened.go_forward()
    assert slider.input_value() == "6"
    opened.goto("about:blank")
    opened.goto(link)
    assert opened.locator("#slider").input_value() == "6"
    opened.goto(f"{address}#image=99&step=nothing")
    opened.reload()
    assert opened.locator("#images button").first.get_attribute("aria-pressed") == "true"


@pytest.mark.parametrize(("width", "across"), [(360, 2), (700, 2), (1024, 3), (1280, 4), (1920, 4)])
def test_rows_of_cards_are_full(browser: Any, address: str, width: int, across: int) -> None:
    """Or nearly: of seven cards one place is left, of four none."""
    tab = browser.new_page(viewport={"width": width, "height": 900})
    tab.goto(address)
    tops = tab.eval_on_selector_all(".card", "all => all.map(each => each.getBoundingClientRect().top)")
    assert tops.count(tops[0]) == tab.evaluate(
        "(fit) => columns(document.querySelectorAll('.card').length, fit)", across
    )
    assert [tab.evaluate("(fit) => columns(4, fit)", fit) for fit in (1, 2, 3, 4, 9)] == [1, 2, 2, 4, 4]
    tab.close()


@pytest.mark.parametrize("opened", [PHONE], indirect=True)
def test_a_phone_compares_two(opened: Any) -> None:
    """Side by side, by buttons that say what they do."""
    opened.locator("#slider").fill("9")
    switch = opened.get_by_role("button", name="Compare two")
    switch.click()
    assert switch.get_attribute("aria-pressed") == "true"
    opened.get_by_label("Left").select_option(METHODS[1])
    opened.get_by_label("Right").select_option(METHODS[0])
    seen = opened.locator(".card:visible")
    assert seen.count() == 2
    left, right = (
        opened.get_by_role("article", name=name, exact=True).bounding_box() for name in (METHODS[1], METHODS[0])
    )
    assert left["y"] == right["y"]
    assert left["x"] < right["x"]
    assert opened.evaluate("document.documentElement.scrollWidth") <= 360
    opened.get_by_label("Right").select_option(METHODS[1])
    assert opened.get_by_label("Left").input_value() == "1", "they change places"
    switch.click()
    assert seen.count() == 1 + len(METHODS)


@pytest.mark.parametrize("opened", [PHONE], indirect=True)
def test_a_table_that_is_cut_says_so(opened: Any) -> None:
    assert opened.get_by_text("scroll it sideways").is_visible()
    opened.set_viewport_size({"width": 3000, "height": 900})
    opened.wait_for_timeout(100)
    assert not opened.get_by_text("scroll it sideways").is_visible()


@pytest.mark.parametrize("opened", [DESKTOP, PHONE], indirect=True, ids=["desktop", "phone"])
def test_the_stepper_stays_in_its_section(opened: Any) -> None:
    top = "document.querySelector('.stepper').getBoundingClientRect()"
    opened.locator("#cards .card").last.scroll_into_view_if_needed()
    assert abs(opened.evaluate(f"{top}.top")) < 1, "it stays while cards are looked at"
    opened.evaluate("document.querySelector('#answers').scrollIntoView()")
    section = opened.evaluate("document.querySelector('#answers').getBoundingClientRect().top")
    assert opened.evaluate(f"{top}.bottom") <= section + 1


def test_light_and_dark_are_two_pages(opened: Any) -> None:
    opened.locator("#slider").fill("17")
    background = "getComputedStyle(document.body).backgroundColor"
    light, pages = opened.evaluate(background), pictures(opened)
    opened.emulate_media(color_scheme="dark")
    opened.wait_for_timeout(100)
    assert opened.evaluate(background) != light
    assert pictures(opened) != pages, "what is gone takes the colour of the page"


def test_no_two_lines_look_alike(browser: Any, extreme: str) -> None:
    tab = browser.new_page()
    tab.goto(extreme)
    keys = tab.eval_on_selector_all("#curves .keys line", "all => all.map(each => each.outerHTML)")
    assert len(set(keys)) == len(keys) > 10
    tab.close()


def test_curves(opened: Any) -> None:
    section = opened.locator("#curves")
    assert section.locator("circle").count() > 30
    tokens = section.locator("svg[role=img]").inner_html()
    section.get_by_role("button", name="FLOPs of the whole call").click()
    assert section.locator("svg[role=img]").inner_html() != tokens
    key = section.get_by_role("button", name="luvc", exact=True)
    key.click()
    assert key.get_attribute("aria-pressed") == "true"
    assert section.locator("g[opacity='0.13']").count() == section.locator(".keys button").count() - 1
    section.locator("summary").click()
    assert "luvc" in section.locator("table").inner_text()
    bench = opened.locator("#bench")
    assert bench.locator("circle").count() == 3
    bench.get_by_role("button", name="one point").click()
    assert bench.locator("circle").count() == 1
    bench.get_by_role("button", name="same cost").click()
    first, second = (bench.locator("circle").nth(i).bounding_box() for i in range(2))
    assert abs(first["x"] - second["x"]) < 40, "0.3 points of a hundred are next to nothing, and look like it"

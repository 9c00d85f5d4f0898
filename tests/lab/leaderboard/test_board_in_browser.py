"""The page of a leaderboard in a real Chromium, from a file: it sorts, it filters, and it is a whole table without a script."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import browsers
import pytest
from boards import NASTY, made
from browsers import DESKTOP, PHONE

from foveate.lab.leaderboard import page

browsers.skip_without()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with browsers.running() as found:
        yield found


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    return page.write([made("a"), made("b")], tmp_path_factory.mktemp("board")).as_uri()


@pytest.fixture
def opened(browser: Any, address: str, request: pytest.FixtureRequest) -> Iterator[Any]:
    """The page; whatever it complains about, or asks for, fails the test."""
    tab = browser.new_context(**getattr(request, "param", DESKTOP), offline=True).new_page()
    heard: list[str] = []
    tab.on("console", lambda message: heard.append(message.text))
    tab.on("pageerror", lambda error: heard.append(str(error)))
    tab.on("request", lambda asked: heard.append(asked.url) if asked.url not in (address, "data:,") else None)
    tab.goto(address)
    yield tab
    assert heard == []
    tab.context.close()


def methods(tab: Any) -> list[str]:
    """Of the rows that can be seen."""
    found: list[str] = tab.eval_on_selector_all(
        "#board tbody tr", "all => all.filter(r => r.checkVisibility()).map(r => r.cells[1].firstChild.data.trim())"
    )
    return found


def test_a_click_sorts(opened: Any) -> None:
    assert methods(opened) == ["dense", NASTY, "stride", "fastv"]
    head = opened.get_by_role("columnheader", name="Speed", exact=True)
    head.get_by_role("button").click()
    assert methods(opened) == ["stride", NASTY, "fastv", "dense"], "the fastest first, what was not timed last"
    assert head.get_attribute("aria-sort") == "descending"
    head.get_by_role("button").press("Enter")
    assert methods(opened) == ["fastv", NASTY, "stride", "dense"], (
        "by keyboard, the other way, and empty cells stay last"
    )
    opened.get_by_role("button", name="Method").click()
    assert methods(opened)[1:] == ["dense", "fastv", "stride"]
    assert opened.locator("th[aria-sort]").count() == 1
    opened.get_by_role("button", name="Rank").click()
    assert methods(opened) == [NASTY, "stride", "fastv", "dense"]


def test_filters(opened: Any) -> None:
    def choose(name: str, value: str) -> list[str]:
        opened.get_by_label(name).select_option(value)
        return methods(opened)

    assert choose("Cost", "kv") == ["dense"], "the budget of the other cost"
    assert sorted(choose("Budget", "0.5")) == sorted(["dense", "fastv", "stride", NASTY])
    assert "closest 1.00" in opened.locator("tr.missed:visible").inner_text()
    assert "4 of 14 rows" in opened.get_by_role("status").inner_text()
    assert len(choose("Model", "")) == 8
    assert choose("Attention", "reads") == ["fastv"] * 2
    assert choose("Acts", "tower") == []
    choose("Attention", "")
    assert choose("Cost", "") == [NASTY] * 2
    choose("Acts", "")
    assert set(choose("Kind", "control")) == {"stride"}


def test_words_are_shown_and_never_run(opened: Any) -> None:
    assert NASTY in opened.inner_text("#board")
    assert opened.evaluate("window.hacked") is None
    opened.locator("tr.method:visible summary").first.click()
    assert "foveate eval reference --method" in opened.locator("details[open] pre").first.inner_text()


def test_without_a_script_it_is_a_table(browser: Any, address: str) -> None:
    tab = browser.new_context(java_script_enabled=False).new_page()
    tab.goto(address)
    assert tab.locator("#board tbody tr").count() == 14
    assert tab.locator("#board tbody tr").last.is_visible()
    assert not tab.locator("#filters").is_visible()
    assert tab.get_by_role("columnheader", name="Accuracy").is_visible()
    tab.context.close()


@pytest.mark.parametrize("opened", [PHONE], indirect=True)
def test_a_phone_scrolls_the_table_alone(opened: Any) -> None:
    assert opened.evaluate("document.documentElement.scrollWidth") <= 360
    assert opened.locator("#board tbody th:visible").first.bounding_box()["width"] < 300

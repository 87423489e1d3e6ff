"""The page in a real browser: what is shown, what controls and keys do, and that all is local."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lightning_mllm.store.sample_maps import SampleMaps
from lightning_mllm.tracking.report.page import write_report
from tests.support.report_runs import QUESTION, SHARE, SIGNED, WORDS, simulate_run

pytestmark = [pytest.mark.browser, pytest.mark.slow]

SIZES = [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")]
LEVELS = 16
SIDE = 6
CONTROLS = ("sample", "previous", "next", "colour", "scale", "opacity", "grid", "grey", "mark-0")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    driver = pytest.importorskip(
        "playwright.sync_api", reason="needs the package playwright", exc_type=ImportError
    )
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("needs the system's chromium (apt-get install chromium)")
    with driver.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield opened
        opened.close()


class Opened:
    """A page in a browser, with all that it said and asked for."""

    def __init__(self, browser: Any, path: Path, width: int = 1280, scheme: str = "light") -> None:
        self.context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme
        )
        self.page = self.context.new_page()
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(path.as_uri())
        self.page.wait_for_selector("html[data-ready]")
        self.page.wait_for_selector("#layer")

    def canvas(self, selector: str = "#map") -> str:
        """Return the pixels of a canvas as text."""
        return str(self.page.eval_on_selector(selector, "canvas => canvas.toDataURL()"))

    def number(self, name: str) -> float:
        """Return what the table of the chosen patch says of a map; NaN for none."""
        text = self.page.text_content(f'[data-map="{name}"]')
        return float("nan") if text == "none" else float(text)

    def choose(self, selector: str, value: str) -> None:
        self.page.select_option(selector, value)

    def slide(self, selector: str, value: int) -> None:
        self.page.fill(selector, str(value))


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[SampleMaps]]:
    folder = tmp_path_factory.mktemp("report")
    maps = simulate_run(folder / "run", side=SIDE, samples=3, layers=3)
    return write_report(folder / "run", folder / "page.html").path, maps


@pytest.fixture
def shown(browser: Any, report: tuple[Path, list[SampleMaps]]) -> Iterator[Opened]:
    opened = Opened(browser, report[0])
    yield opened
    opened.context.close()
    assert opened.said == []


@pytest.mark.parametrize(("width", "scheme"), SIZES)
def test_the_page_fits_says_nothing_wrong_and_loads_nothing(
    browser: Any, report: tuple[Path, list[SampleMaps]], width: int, scheme: str
) -> None:
    opened = Opened(browser, report[0], width, scheme)
    for summary in opened.page.query_selector_all("main > section > details > summary"):
        summary.click()
    opened.page.wait_for_timeout(200)

    widths = opened.page.evaluate(
        "[document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    )
    assert widths[0] <= widths[1] == width
    assert [url for url in opened.asked if not url.startswith("data:")] == [report[0].as_uri()]
    assert opened.said == []
    assert opened.page.text_content("h1") == "run"
    assert QUESTION in opened.page.text_content(".about")
    assert opened.page.locator("#curves canvas").count() == 2
    opened.context.close()


def test_each_control_changes_the_map(shown: Opened) -> None:
    changes: dict[str, Callable[[], Any]] = {
        "sample": lambda: shown.page.click("#next"),
        "layer": lambda: shown.slide("#layer", 0),
        "scale": lambda: shown.choose("#scale", "all"),
        "opacity": lambda: shown.slide("#opacity", 30),
        "grey": lambda: shown.page.uncheck("#grey"),
        "grid": lambda: shown.page.uncheck("#grid"),
        "boxes": lambda: shown.page.uncheck("#mark-0"),
        "patches": lambda: shown.page.check("#mark-1"),
        "map": lambda: shown.choose("#colour", SIGNED),
        "words": lambda: shown.choose("#colour", WORDS),
        "word": lambda: shown.page.click("#often-0"),
    }
    seen = [shown.canvas()]
    for name, change in changes.items():
        change()
        shown.page.wait_for_timeout(150)
        seen.append(shown.canvas())
        assert seen[-1] != seen[-2], name


def test_the_numbers_are_the_runs_within_half_a_level(
    shown: Opened, report: tuple[Path, list[SampleMaps]]
) -> None:
    maps = report[1][0]
    for layer in range(3):
        shown.slide("#layer", layer)
        shown.page.focus("#map")
        shown.page.keyboard.press("Home")
        for column in range(SIDE):
            for name in (SHARE, SIGNED):
                own = maps.values[name].values[layer]
                half = (np.nanmax(own) - np.nanmin(own)) / (LEVELS - 1) / 2
                read = shown.number(name)
                if np.isnan(own[column]):
                    assert np.isnan(read)
                else:  # what is read is rounded to a tenth of a level
                    assert abs(read - own[column]) <= half * 1.2
            shown.page.keyboard.press("ArrowRight")


def test_the_words_are_the_runs(shown: Opened, report: tuple[Path, list[SampleMaps]]) -> None:
    words = report[1][0].words[WORDS]
    shown.choose("#colour", WORDS)
    shown.slide("#layer", 2)
    shown.page.focus("#map")
    shown.page.keyboard.press("Home")

    said = [word.text_content().split()[0] for word in shown.page.query_selector_all(".word")]

    assert said == [words.words[place] for place in words.ids[2, 0]]


def test_the_keyboard_reaches_all_controls_and_moves_from_patch_to_patch(shown: Opened) -> None:
    reached = set()
    shown.page.focus("body")
    for _ in range(60):
        shown.page.keyboard.press("Tab")
        reached.add(shown.page.evaluate("document.activeElement.id"))
    assert {*CONTROLS, "layer", "map"} <= reached

    shown.page.focus("#map")
    shown.page.keyboard.press("Home")
    shown.page.keyboard.press("ArrowDown")
    shown.page.keyboard.press("ArrowRight")
    assert shown.page.text_content("[aria-live].live").startswith("Row 2, column 2, layer ")
    before = shown.page.text_content("output")
    shown.page.keyboard.press("PageUp")
    assert shown.page.text_content("output") == str(int(before) + 1)


def test_pointing_at_a_patch_says_its_number_and_a_click_chooses_it(shown: Opened) -> None:
    box = shown.page.locator("#map").bounding_box()
    x, y = box["width"] * 2.5 / SIDE, box["height"] * 1.5 / SIDE
    shown.page.hover("#map", position={"x": x, "y": y})
    assert shown.page.text_content(".tip").startswith("Row 2, column 3, layer ")

    shown.page.click("#map", position={"x": x, "y": y})
    assert shown.page.text_content(".patch h3") == "Patch in row 2, column 3"


def test_every_control_has_a_name(shown: Opened) -> None:
    nameless = shown.page.evaluate(
        """() => [...document.querySelectorAll("button, input, select, canvas[tabindex]")].filter(
            (each) => !each.getAttribute("aria-label") && !each.textContent.trim()
              && !(each.labels && each.labels.length)).map((each) => each.outerHTML)"""
    )
    assert nameless == []


def test_a_run_without_maps_has_a_page_too(browser: Any, tmp_path: Path) -> None:
    simulate_run(tmp_path / "run", samples=0)
    path = write_report(tmp_path / "run", tmp_path / "page.html").path
    context = browser.new_context()
    page = context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(path.as_uri())
    page.wait_for_selector("html[data-ready]")

    assert re.findall(r"\w+", page.text_content("nav")) == ["CurvesResultsSettings"]
    assert errors == []
    context.close()

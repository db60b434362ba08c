"""The report in a real browser: no console message, no request but the file itself, tables and plots on the page."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from expunge.report import html

pytestmark = pytest.mark.browser

FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync"]
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install -e '.[dev]'")
    path = next((found for name in NAMES if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of the example evidence that tests/report uses."""
    source = Path(__file__).parents[1] / "report" / "conftest.py"
    spec = importlib.util.spec_from_file_location("report_examples", source)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["report_examples"] = module
    spec.loader.exec_module(module)
    return html.write(module.example_evidence(), tmp_path_factory.mktemp("report"))


@pytest.fixture
def page(chromium: Any, report: Path) -> Iterator[Any]:
    """The opened report; at the end nothing must have been logged, thrown or asked for."""
    opened = chromium.new_page(viewport={"width": 1280, "height": 900})
    messages: list[str] = []
    requests: list[str] = []
    opened.on("console", lambda message: messages.append(message.text))
    opened.on("pageerror", lambda error: messages.append(str(error)))
    opened.on("request", lambda request: requests.append(request.url))
    opened.goto(report.as_uri())
    yield opened
    opened.close()
    assert messages == []
    assert [url for url in requests if not url.startswith("data:")] == [report.as_uri()]


def test_tables_and_plots_are_visible(page: Any) -> None:
    assert page.title() == "Removal of 20 people from demo-1m"
    assert page.locator("table.matrix").count() == 3
    assert page.locator("#verdicts table").first.is_visible()
    for plot in (".dots", ".tradeoff", ".strip", ".curve"):
        box = page.locator(f"svg{plot}").first.bounding_box()
        assert box["width"] > 100, plot
        assert box["height"] > 10, plot
    assert page.locator("svg.dots").count() >= 10
    assert page.locator("header .badge").inner_text() == "FAIL"


def test_hostile_strings_are_text(page: Any) -> None:
    assert "<script>alert('x')</script>" in page.locator("header").inner_text()


@pytest.mark.parametrize("width", [360, 800, 1280])
def test_nothing_sticks_out_of_the_page(page: Any, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_dark_light_and_print(page: Any) -> None:
    colour = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(colour)
    page.emulate_media(color_scheme="dark")
    dark = page.evaluate(colour)
    assert light != dark
    page.get_by_role("button", name="Dark").click()  # the page opened light, so the button offers dark
    assert page.evaluate(colour) == dark
    page.get_by_role("button", name="Light").click()
    assert page.evaluate(colour) == light
    page.emulate_media(media="print")
    assert page.evaluate(colour) == "rgb(255, 255, 255)"
    assert not page.locator("nav").is_visible()
    page.set_viewport_size({"width": 695, "height": 1000})  # A4 less the margins, at 96 dots per inch
    assert page.evaluate("document.documentElement.scrollWidth") <= 695
    assert len(page.pdf(prefer_css_page_size=True)) > 10_000


def test_the_keyboard_reaches_the_summary_first(page: Any) -> None:
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the summary"
    page.keyboard.press("Enter")
    assert page.evaluate("location.hash") == "#summary"


def test_everything_is_there_without_script(chromium: Any, report: Path) -> None:
    context = chromium.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(report.as_uri())
    assert page.locator("svg.tradeoff").is_visible()
    assert page.get_by_role("button").count() == 0
    context.close()

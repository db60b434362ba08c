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
def examples() -> Any:
    """The evidence that tests/report uses."""
    source = Path(__file__).parents[1] / "report" / "conftest.py"
    spec = importlib.util.spec_from_file_location("report_examples", source)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["report_examples"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def report(examples: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return html.write(examples.example_evidence(), tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def large_report(examples: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty-five attacks by twenty measures, with curves and layers."""
    return html.write(examples.large_evidence(), tmp_path_factory.mktemp("large"))


def opened(chromium: Any, report: Path) -> Iterator[Any]:
    """The opened report; at the end nothing must have been logged, thrown or asked for."""
    page = chromium.new_page(viewport={"width": 1280, "height": 900})
    messages: list[str] = []
    requests: list[str] = []
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(report.as_uri())
    yield page
    page.close()
    assert messages == []
    assert {url.partition("#")[0] for url in requests if not url.startswith("data:")} == {report.as_uri()}


@pytest.fixture
def page(chromium: Any, report: Path) -> Iterator[Any]:
    yield from opened(chromium, report)


@pytest.fixture
def large(chromium: Any, large_report: Path) -> Iterator[Any]:
    yield from opened(chromium, large_report)


def test_tables_and_plots_are_visible(page: Any) -> None:
    assert page.title() == "Removal of 20 people from demo-1m"
    assert page.locator("table.matrix").count() == 3
    assert page.locator("table.cross").first.is_visible()
    assert page.locator("#verdicts table").first.is_visible()
    for plot in (".dots", ".tradeoff", ".strip", ".curve"):
        box = page.locator(f"svg{plot}").first.bounding_box()
        assert box["width"] > 100, plot
        assert box["height"] > 10, plot
    assert page.locator("svg.dots").count() >= 4
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


# -- the attack matrix -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("width", [360, 800, 1280])
def test_a_large_matrix_scrolls_in_its_own_box(large: Any, width: int) -> None:
    large.set_viewport_size({"width": width, "height": 900})
    large.evaluate("document.querySelectorAll('details').forEach(part => { part.open = true; })")
    assert large.evaluate("document.documentElement.scrollWidth") <= width
    box = large.locator(".box").nth(1)
    assert box.evaluate("box => box.scrollHeight > box.clientHeight")
    box.evaluate("box => { box.scrollTop = 300; box.scrollLeft = 200; }")
    frame = box.bounding_box()
    head, corner = box.locator("thead th").nth(3), box.locator("thead th").first
    assert abs(head.bounding_box()["y"] - frame["y"]) < 3
    assert abs(corner.bounding_box()["x"] - frame["x"]) < 3
    row = box.locator("tbody th[scope=row]").nth(12)
    assert abs(row.bounding_box()["x"] - frame["x"]) < 3


def at(page: Any) -> str:
    """The text of the cell that has the focus."""
    return str(page.evaluate("document.activeElement.innerText")).split("\n")[0].strip()


def test_the_matrix_is_walked_with_the_keyboard_alone(large: Any) -> None:
    box, told = large.locator(".box").first, large.locator(".detail").first
    large.keyboard.press("Tab")
    for _ in range(60):  # whatever stands before it
        if large.evaluate("document.activeElement.closest('.box') !== null"):
            break
        large.keyboard.press("Tab")
    assert large.evaluate("document.activeElement.classList.contains('box')")
    large.keyboard.press("Tab")
    assert large.evaluate("document.activeElement.tagName") == "TD"
    large.keyboard.press("ArrowRight")
    assert at(large) == "97.0 %"
    assert told.inner_text().startswith("Before the removal. Exact memorization: 97.0 %")
    large.keyboard.press("ArrowDown")
    large.keyboard.press("ArrowDown")
    assert "this is 0.20 margins above it. This comparison passed." in told.inner_text()
    for _ in range(2):
        large.keyboard.press("ArrowDown")
    for _ in range(3):
        large.keyboard.press("ArrowRight")
    assert at(large).startswith("n/a")
    assert told.inner_text().endswith("n/a, relearn leaves nothing to ask <b>.")
    for key in ("End", "PageDown", "PageDown", "ArrowRight"):
        large.keyboard.press(key)
        cell, head = large.locator(":focus").bounding_box(), box.locator("thead th").last.bounding_box()
        assert cell["y"] >= head["y"] + head["height"] - 1, key  # not under the header that stays in place
    assert told.inner_text().startswith("Small weights set to zero: prune(share=0.05). Membership inference (min_k)")
    large.keyboard.press("Home")
    assert at(large) in {"FAIL", "PASS", "INCONCLUSIVE"}
    large.keyboard.press("Shift+Tab")
    assert large.evaluate("document.activeElement.classList.contains('box')")
    large.keyboard.press("Tab")
    assert at(large) in {"FAIL", "PASS", "INCONCLUSIVE"}  # back where it was left
    assert box.locator("[tabindex='0']").count() == 1


def test_an_attack_that_does_not_fit_is_one_cell_on_the_way(large: Any) -> None:
    large.locator(".box td[colspan]").first.focus()
    assert large.locator(".detail").first.inner_text() == (
        "The answer begun for it: prefill: n/a, the tokenizer has no chat template"
    )
    large.keyboard.press("ArrowDown")
    assert at(large) == "FAIL"


def test_enter_on_a_missing_cell_leads_to_its_reason(large: Any) -> None:
    large.locator(".box td.na a").first.locator("..").focus()
    large.keyboard.press("Enter")
    assert large.evaluate("location.hash").endswith("-note-1")
    assert large.locator(":target").inner_text() == "relearn leaves nothing to ask <b>"


def test_without_script_reasons_are_links_and_folds_open(chromium: Any, large_report: Path) -> None:
    context = chromium.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(large_report.as_uri())
    assert page.locator(".detail").count() == 0
    link = page.locator(".box td.na a").first
    link.focus()
    page.keyboard.press("Enter")
    assert page.locator(":target").inner_text() == "relearn leaves nothing to ask <b>"
    fold = page.locator("#attacks details").nth(1)
    assert not fold.locator("table").first.is_visible()
    fold.locator("summary").focus()
    page.keyboard.press("Enter")
    assert fold.locator("table").first.is_visible()
    context.close()


CONTRAST = """cells => cells.map(cell => {
  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const light = colour => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    const parts = Array.from(canvas.getImageData(0, 0, 1, 1).data).slice(0, 3).map(v => v / 255)
      .map(v => v <= 0.04045 ? v / 12.92 : Math.pow((v + 0.055) / 1.055, 2.4));
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
  };
  const text = light(getComputedStyle(cell).color), ground = light(getComputedStyle(cell).backgroundColor);
  return (Math.max(text, ground) + 0.05) / (Math.min(text, ground) + 0.05);
})"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_what_stands_on_a_tint_can_be_read(large: Any, scheme: str) -> None:
    large.emulate_media(color_scheme=scheme)
    for level in range(5):
        assert min(large.locator(f".cross td.l{level}").evaluate_all(CONTRAST)) >= 7, level
    assert min(large.locator(".heat td[style]").evaluate_all(CONTRAST)) >= 4.5


def test_print_shows_what_is_folded_and_nothing_sticks_out(large: Any) -> None:
    large.emulate_media(media="print")
    assert not large.locator(".detail").first.is_visible()
    large.set_viewport_size({"width": 1024, "height": 700})  # A4 landscape
    assert large.locator("#attacks details .cross").first.is_visible()
    assert large.evaluate("document.documentElement.scrollWidth") <= 1024
    assert large.locator(".notes li").first.is_visible()
    assert len(large.pdf(prefer_css_page_size=True)) > 10_000
    assert large.locator("details[open]").count() == 0  # as it was before


def test_maps_and_curves_are_on_the_page(large: Any) -> None:
    assert large.locator("table.heat").count() == 3
    tops = {round(large.locator("table.heat").nth(n).bounding_box()["y"]) for n in range(3)}
    assert len(tops) == 1  # side by side
    assert large.locator("#recovery svg.lines polygon").count() >= 2
    assert large.locator("#recovery table").first.is_visible()

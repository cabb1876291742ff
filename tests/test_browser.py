"""The report's page as Chromium shows it, from a file, with hostile names in it."""

import base64
import io
import json
import os
import re

import matplotlib.image
import numpy
import pandas
import pytest
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.select import Select
from selenium.webdriver.support.wait import WebDriverWait

from study.reporting.page import Report, Section, cell, render, setting
from study.reporting.pairs import AS_LONG
from study.reporting.regimes import Gap
from study.reporting.sheets import gap_tests, sharpness, table1
from study.reporting.statistics import Interval
from tests.conftest import BROWSER, DRIVER
from tests.made_up_report import FOLDER, HOSTILE_NAMES, PICTURE_WIDTH, made_up_report

pytestmark = pytest.mark.browser
FLAGS = (
    "--headless --disable-gpu --disable-quic --disable-dev-shm-usage --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --window-size=1280,900"
)


@pytest.fixture(scope="module")
def driver():
    assert BROWSER, "chromium is not installed: bash scripts/chromium.sh"
    assert DRIVER, "chromedriver is not installed: bash scripts/chromium.sh"
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in FLAGS.split():
        options.add_argument(flag)
    if os.geteuid() == 0:
        options.add_argument("--no-sandbox")  # Chromium's sandbox refuses to start as root
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The report and its page, below a root with the runs' figures."""
    root = tmp_path_factory.mktemp("results")
    report = made_up_report(root)
    page = root / "report/index.html"
    page.write_text(render(report), encoding="utf-8")
    return report, page.as_uri()


@pytest.fixture
def page(driver, report):
    """The driver with the page just opened, light, 1280 pixels wide; logs start here."""
    emulate(driver)
    for log in ("browser", "performance"):
        driver.get_log(log)
    driver.get(report[1])
    wait(driver, lambda d: d.find_elements(By.CSS_SELECTOR, ".run > .folder"))
    return driver


def emulate(driver, width: int = 1280, scheme: str = "light", media: str = "") -> None:
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": features})


def find(driver, selector: str, text: str):
    """The one element with just this text, which the page's script may still have to make."""
    script = "return [...document.querySelectorAll(arguments[0])].filter((e) => e.textContent === arguments[1])"
    (found,) = wait(driver, lambda d: d.execute_script(script, selector, text))
    return found


def header(driver, name: str, table: str = ".runs"):
    return find(driver, f"{table} thead th", name)


def column(driver, name: str, table: str = ".runs") -> list[str]:
    """Texts of the rows that are shown, in their order."""
    script = """
        const table = document.querySelector(arguments[0]);
        const column = [...table.querySelectorAll("thead th")].findIndex((h) => h.textContent === arguments[1]);
        return [...table.querySelectorAll("tbody > tr:not(.details)")].filter((row) => row.cells.length > 2 && !row.hidden)
            .map((row) => row.cells[column].textContent);"""
    return driver.execute_script(script, table, name)


def sorted_texts(values, *, reverse: bool = False) -> list[str]:
    """Numbers by value, then what is no number, empty."""
    numbers = sorted((v for v in values if cell(v).key is not None), key=lambda v: cell(v).key, reverse=reverse)
    return [cell(v).text for v in numbers] + [""] * (len(values) - len(numbers))


def run_row(driver, name: str):
    return find(driver, ".run > .folder", name)


def wait(driver, condition):
    return WebDriverWait(driver, 10).until(condition)


def test_the_page_opens_from_a_file_without_an_error_or_a_request_elsewhere(page, report):
    for run in (report[0].runs[0], report[0].runs[-1]):
        run_row(page, run.name).click()
    wait(page, lambda d: len(d.find_elements(By.CSS_SELECTOR, ".details img[width]")) == 2)
    assert page.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    urls = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    assert any(url.startswith("file:") and url.endswith("figures/accuracy.png") for url in urls)
    assert [url for url in urls if not url.startswith(("file:", "data:"))] == []


@pytest.mark.parametrize("name", ["fisher", "acc_test", "seed", "sparsity"])
def test_a_click_on_a_heading_sorts_by_value_and_another_reverses(page, report, name):
    values = [run.cells.get(name) for run in report[0].runs]
    assert column(page, name) == [cell(value).text for value in values]
    header(page, name).click()
    assert column(page, name) == sorted_texts(values)
    assert header(page, name).get_attribute("aria-sort") == "ascending"
    header(page, name).click()
    assert column(page, name) == sorted_texts(values, reverse=True)
    assert header(page, name).get_attribute("aria-sort") == "descending"
    assert len(page.find_elements(By.CSS_SELECTOR, ".runs [aria-sort]")) == 1


def test_rows_that_are_equal_keep_the_order_they_had(page, report):
    header(page, "acc_test").click()
    header(page, "sparsity").click()
    runs = [run for run in report[0].runs if run.cells["sparsity"] == 0.9]
    accuracies = [text for text, of in zip(column(page, "acc_test"), column(page, "sparsity"), strict=True) if of == "0.9"]
    assert accuracies == sorted_texts([run.cells["acc_test"] for run in runs])


@pytest.mark.parametrize("place", [2, 3])
def test_a_sheet_sorts_values_with_errors_and_numbers_and_leaves_the_runs_alone(page, report, place):
    sheet, selector = report[0].sections[0].sheets[0], "#table-1"
    before = column(page, "seed")
    header(page, sheet.columns[place], selector).click()
    assert column(page, sheet.columns[place], selector) == sorted_texts([row[place] for row in sheet.rows])
    header(page, sheet.columns[place], selector).click()
    assert column(page, sheet.columns[place], selector) == sorted_texts([row[place] for row in sheet.rows], reverse=True)
    assert column(page, "seed") == before


def test_the_search_and_the_lists_narrow_the_runs_and_say_how_many_are_left(page, report):
    runs = report[0].runs
    count = page.find_element(By.CSS_SELECTOR, ".count output")
    assert count.text == f"{len(runs)} of {len(runs)} runs"

    search = page.find_element(By.CSS_SELECTOR, ".filters input")
    search.send_keys("SPARSE cifar100")  # both words, in any column, in any case
    left = [run for run in runs if "sparse" in run.cells["mode"] and run.cells["data"] == "cifar100"]
    assert 0 < len(left) < len(runs)
    assert count.text == f"{len(left)} of {len(runs)} runs"
    assert column(page, "seed") == [str(run.cells["seed"]) for run in left]

    choose(page, "sparsity", "0.95")
    left = [run for run in left if run.cells["sparsity"] == 0.95]
    assert column(page, "seed") == [str(run.cells["seed"]) for run in left]
    assert count.text == f"{len(left)} of {len(runs)} runs"

    header(page, "fisher").click()
    assert column(page, "fisher") == sorted_texts([run.cells["fisher"] for run in left])
    page.find_element(By.CSS_SELECTOR, ".clear").click()
    assert column(page, "fisher") == sorted_texts([run.cells.get("fisher") for run in runs])
    assert count.text == f"{len(runs)} of {len(runs)} runs"


def choose(driver, label: str, value: str) -> None:
    (found,) = [e for e in driver.find_elements(By.CSS_SELECTOR, ".filters label") if e.text.split("\n")[0].strip() == label]
    Select(found.find_element(By.TAG_NAME, "select")).select_by_visible_text(value)


def test_columns_whose_values_repeat_have_a_list_and_others_do_not(page):
    labels = [e.text.split("\n")[0].strip() for e in page.find_elements(By.CSS_SELECTOR, ".filters label")]
    assert labels == ["search", "data", "mode", "sparsity"]


@pytest.mark.parametrize("which", [0, -1])
def test_a_click_on_a_run_shows_its_settings_and_only_then_loads_its_figure(page, report, which):
    run = report[0].runs[which]
    assert page.find_elements(By.CSS_SELECTOR, ".runs img, .details") == []
    run_row(page, run.name).click()
    picture = page.find_element(By.CSS_SELECTOR, ".details img")
    assert wait(page, lambda d: picture.get_property("naturalWidth")) == PICTURE_WIDTH
    assert picture.get_attribute("alt") == f"{run.pictures[0][0]} of {run.name}"
    rows = page.execute_script(
        "return [...document.querySelectorAll('.settings tr')].map((row) => [...row.cells].map((cell) => cell.textContent))"
    )
    assert dict(rows) == {name: setting(value) for name, value in run.settings.items()}
    assert len(rows) == len(run.settings)
    run_row(page, run.name).click()
    assert page.find_elements(By.CSS_SELECTOR, ".details") == []


def test_opened_details_follow_their_run_when_it_is_sorted_and_filtered(page, report):
    run = report[0].runs[0]
    run_row(page, run.name).click()
    header(page, "acc_test").click()
    above = page.execute_script("return document.querySelector('.details').previousSibling.lastChild.textContent")
    assert above == run.name
    page.find_element(By.CSS_SELECTOR, ".filters input").send_keys("no such run")
    assert not page.find_element(By.CSS_SELECTOR, ".details").is_displayed()


def test_a_figure_that_is_missing_says_so(page, report):
    run = report[0].runs[1]
    run_row(page, run.name).click()
    wait(page, lambda d: not d.find_elements(By.CSS_SELECTOR, ".details img"))
    text = page.find_element(By.CSS_SELECTOR, ".details figure").text
    assert f"The figure is missing: ../{run.name}/figures/accuracy.png" in text


def test_hostile_names_are_shown_and_do_nothing(page, report):
    run_row(page, FOLDER).click()
    wait(page, lambda d: d.find_elements(By.CSS_SELECTOR, ".details img[width]"))
    for link in page.find_elements(By.LINK_TEXT, "PDF"):
        page.execute_script("arguments[0].addEventListener('click', (event) => event.preventDefault())", link)
        assert link.get_attribute("href").endswith("/report/javascript%3Awindow.hostile%3D1")
    assert page.title == HOSTILE_NAMES[1]
    text = page.execute_script("return document.body.textContent")
    assert all(name in text for name in HOSTILE_NAMES)
    assert len(page.find_elements(By.TAG_NAME, "img")) == 3  # two of the sections, one of the run
    assert len(page.find_elements(By.TAG_NAME, "script")) == 5
    assert page.execute_script("return window.hostile") is None


def test_markup_that_got_in_all_the_same_could_run_nothing(page):
    inject = """
        const done = arguments[arguments.length - 1];
        document.addEventListener("securitypolicyviolation", (event) => done(event.effectiveDirective));
        document.body.insertAdjacentHTML("beforeend", "<img src='data:,' onerror='window.hostile = 1'>");"""
    assert page.execute_async_script(inject) == "script-src-attr"
    assert page.execute_script("return window.hostile") is None


def test_everything_works_from_the_keyboard(page, report):
    values = [run.cells["acc_test"] for run in report[0].runs if "acc_test" in run.cells] + [None]
    button = header(page, "acc_test").find_element(By.TAG_NAME, "button")
    button.send_keys(Keys.ENTER)
    assert column(page, "acc_test") == sorted_texts(values)
    button.send_keys(Keys.SPACE)
    assert column(page, "acc_test") == sorted_texts(values, reverse=True)
    assert page.switch_to.active_element == button

    toggle = page.find_element(By.CSS_SELECTOR, ".run .toggle")
    for key, expanded in ((Keys.ENTER, "true"), (Keys.SPACE, "false")):
        toggle.send_keys(key)
        assert toggle.get_attribute("aria-expanded") == expanded
        assert bool(page.find_elements(By.CSS_SELECTOR, ".details")) == (expanded == "true")
    assert toggle.accessible_name.startswith("details of digits/mlp/")


def drawn(driver, chart: str = "#chart-1"):
    """A chart, as soon as it has been drawn."""
    element = driver.find_element(By.CSS_SELECTOR, f"{chart} .chart")
    driver.execute_script("arguments[0].scrollIntoView()", element)
    wait(driver, lambda _: element.get_attribute("data-drawn") is not None)
    return element


SYMBOLS = ".mark-symbol"  # of a panel, first the single runs, then the means


def marks(chart) -> list:
    return chart.find_elements(By.CSS_SELECTOR, f"{SYMBOLS} path")


def hover(driver, mark) -> list[str]:
    """Lines of the tooltip of a mark."""
    ActionChains(driver).move_to_element(mark).perform()
    tip = driver.find_element(By.CSS_SELECTOR, ".tip")
    wait(driver, lambda _: tip.is_displayed())
    return [line.text for line in tip.find_elements(By.TAG_NAME, "p")]


def test_charts_are_drawn_without_an_error_or_a_request_elsewhere(page):
    for chart in ("#chart-1", "#chart-2"):
        assert len(drawn(page, chart).find_elements(By.CSS_SELECTOR, "svg.marks")) == 2
    assert page.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    urls = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    assert [url for url in urls if not url.startswith(("file:", "data:"))] == []


def test_a_band_is_one_area_over_all_of_its_points(page):
    (area,) = drawn(page).find_elements(By.CSS_SELECTOR, ".mark-area path")
    assert len(re.findall(r"[ML]", area.get_attribute("d"))) == 6  # three points there, and three back
    assert area.rect["width"] > 100


def test_a_point_of_a_chart_tells_its_mean_interval_and_runs_and_a_dot_its_run(page, report):
    names = [run.name for run in report[0].runs]
    groups = drawn(page).find_elements(By.CSS_SELECTOR, SYMBOLS)[:2]
    dots, points = (group.find_elements(By.TAG_NAME, "path") for group in groups)
    lines = hover(page, points[0])
    assert lines[0] == "scratch"
    assert "0.8 [0.75, 0.85]" in lines[2]
    assert f"2 runs: {names[2]}, {names[3]}" in lines
    told = hover(page, dots[0])
    assert told[0] == f"{names[2]} (scratch)"
    assert "0.72" in told[2]
    assert page.get_log("browser") == []


def test_a_click_on_a_point_leaves_its_runs_in_the_table_and_the_button_shows_all_again(page, report):
    runs = report[0].runs
    choose(page, "sparsity", "0.95")
    mark = drawn(page).find_elements(By.CSS_SELECTOR, SYMBOLS)[1].find_elements(By.TAG_NAME, "path")[-1]
    page.execute_script("arguments[0].dispatchEvent(new MouseEvent('click', {bubbles: true}))", mark)
    count = page.find_element(By.CSS_SELECTOR, ".count output")
    wait(page, lambda _: count.text != f"{len(runs)} of {len(runs)} runs")
    assert count.text == f"1 of {len(runs)} run{'s' * (len(runs) > 1)}"
    assert column(page, "folder") == [FOLDER]
    source = page.find_element(By.CSS_SELECTOR, ".source")
    assert source.text.startswith("of chart 1: ")
    assert source.find_element(By.TAG_NAME, "a").get_attribute("href").endswith("#chart-1")
    page.find_element(By.CSS_SELECTOR, ".clear").click()
    assert count.text == f"{len(runs)} of {len(runs)} runs"
    assert not source.is_displayed()


@pytest.mark.parametrize("key", [None, Keys.SPACE])
def test_the_legend_hides_and_shows_a_series_in_every_panel(page, key):
    chart = drawn(page)
    before = len(marks(chart))
    (entry,) = [e for e in chart.find_elements(By.CSS_SELECTOR, ".entry") if e.text == "scratch"]
    press = entry.click if key is None else lambda: entry.send_keys(key)
    press()
    wait(page, lambda _: len(marks(chart)) == before - 8)  # two points and two dots in either panel
    assert entry.get_attribute("aria-pressed") == "false"
    press()
    wait(page, lambda _: len(marks(chart)) == before)
    assert entry.get_attribute("aria-pressed") == "true"


@pytest.mark.parametrize("width", [400, 1280])
def test_a_chart_is_as_wide_as_the_page_allows_and_follows_it(page, width):
    for size in (1280, width):
        emulate(page, size)
        chart = drawn(page)
        wait(page, lambda _, chart=chart: all(inside(svg, chart) for svg in chart.find_elements(By.CSS_SELECTOR, "svg.marks")))
        rows = {svg.rect["y"] for svg in chart.find_elements(By.CSS_SELECTOR, "svg.marks")}
        assert len(rows) == (2 if size == 400 else 1)  # panels one below the other on a phone


def inside(element, frame) -> bool:
    left, right = frame.rect["x"], frame.rect["x"] + frame.rect["width"]
    return left <= element.rect["x"] and element.rect["x"] + element.rect["width"] <= right


def test_without_javascript_figures_and_tables_are_there_and_the_runs_are_pointed_to(page, report):
    page.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        page.get(report[1])
        assert len(page.find_elements(By.CSS_SELECTOR, "figure img")) == 2
        assert page.find_element(By.CSS_SELECTOR, "#table-1 tbody").is_displayed()
        charts, runs = (element.text for element in page.find_elements(By.TAG_NAME, "noscript"))
        assert "The same rows are in runs.csv" in runs
        assert "The charts of this page need JavaScript" in charts
        assert not page.find_element(By.CSS_SELECTOR, ".chart").is_displayed()
        assert not page.find_element(By.CSS_SELECTOR, ".runs").is_displayed()
    finally:
        page.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


@pytest.mark.parametrize("width", [400, 1280])
def test_a_figure_is_shown_whole_by_click_and_by_key_and_closed_again(page, width):
    emulate(page, width)
    button = page.find_element(By.CSS_SELECTOR, "#figure-1 .zoom")
    for opened, closed in (
        (button.click, lambda whole: whole.find_element(By.TAG_NAME, "img").click()),
        (
            lambda: button.send_keys(Keys.ENTER),
            lambda whole: whole.find_element(By.CSS_SELECTOR, ".close").send_keys(Keys.ENTER),
        ),
        (lambda: button.send_keys(Keys.SPACE), lambda whole: whole.send_keys(Keys.ESCAPE)),
    ):
        opened()
        whole = page.find_element(By.CSS_SELECTOR, "dialog[open]")
        picture = whole.find_element(By.TAG_NAME, "img")
        wait(page, lambda _, picture=picture: picture.get_property("naturalWidth"))
        assert picture.size["width"] == round(PICTURE_WIDTH / 150 * 96)  # its own size, however narrow the page
        closed(whole)
        wait(page, lambda d: not d.find_elements(By.CSS_SELECTOR, "dialog"))
        assert page.switch_to.active_element == button
    assert page.get_log("browser") == []


def test_every_link_of_the_navigation_is_in_view(page):
    for width in (1280, 400):
        emulate(page, width)
        for link in page.find_elements(By.CSS_SELECTOR, "nav a"):
            place = link.rect
            assert place["x"] >= 0
            assert place["x"] + place["width"] <= width


def test_the_regime_of_table_1_is_in_view(page, tmp_path):
    path = tmp_path / "index.html"
    gap = Gap(Interval(0.0123, -0.0123, 0.0369, 3, ""), 0.1, 0.2, (0, 1), (0, 1), 0.012, 0.02, 0.05, "unclear")
    ratio = Interval(12.5, 3.4, 51.2, 3, "")
    series = "sparse-scratch, lr_milestones 100-150-200, n_epochs 450, prune_last False"
    row = {
        "sparsity": 0.9,
        "seeds": 3,
        "runs": 3,
        "finetune": series,
        "scratch": series,
        "regime": "cannot tell",
        "budget": AS_LONG,
        "unreliable": (),
    }
    row |= {"train_gap": gap, "test_gap": gap} | dict.fromkeys(
        ("fisher_ratio", "hessian_ratio", "jacobian_ratio", "trend_f", "trend_s"), ratio
    )
    table = pandas.DataFrame([row])
    section = Section("Study", "", (), (table1(table, 0.01), gap_tests(table, 0.01), sharpness(table)))
    report = Report("Report", "results", "2026-01-02T03:04:05", "", (section,), ("data",), ())
    path.write_text(render(report), encoding="utf-8")
    page.get(path.as_uri())
    for sheet in ("table-1", "table-1-tests", "table-1-sharpness"):
        whole, shown = page.execute_script(
            "const s = document.querySelector(arguments[0]); return [s.scrollWidth, s.clientWidth]", f"#{sheet} .scroll"
        )
        assert whole <= shown, sheet  # all columns fit into 1280 pixels
    emulate(page, 400)
    place = find(page, "#table-1 td", "cannot tell").rect
    assert place["x"] + place["width"] <= 400


LOOKS = {
    "light": {"width": 1280},
    "dark": {"width": 1280, "scheme": "dark"},
    "phone": {"width": 400},
    "paper": {"width": 800, "scheme": "dark", "media": "print"},
}


@pytest.mark.parametrize("look", LOOKS)
def test_the_page_is_readable_and_does_not_scroll_sideways(page, report, look, tmp_path):
    emulate(page, **LOOKS[look])
    run_row(page, report[0].runs[0].name).click()
    wait(page, lambda d: d.find_elements(By.CSS_SELECTOR, ".details img[width]"))
    if look != "paper":  # there a browser shrinks what is too wide
        assert page.execute_script("return document.documentElement.scrollWidth") <= LOOKS[look]["width"]
    texts = ("h1", ".summary", ".text", "h3 a", "figcaption .text", "a[href]", "thead th", "td", ".missing", ".count")
    for selector in (*texts, ".entry", ".panel-title"):
        text, paper = page.execute_script(COLOURS, selector)
        assert contrast(text, paper) >= 4.5, (selector, text, paper)

    path = tmp_path / f"{look}.png"
    path.write_bytes(base64.b64decode(page.execute_cdp_cmd("Page.captureScreenshot", {"format": "png"})["data"]))
    pixels = matplotlib.image.imread(io.BytesIO(path.read_bytes()), format="png")
    assert pixels.shape[:2] == (900, LOOKS[look]["width"])
    assert (numpy.median(pixels[..., :3]) < 0.5) == (look == "dark")


# the colour of an element's text and that of the nearest background that is not transparent
COLOURS = """
    const element = document.querySelector(arguments[0]);
    let behind = element;
    while (getComputedStyle(behind).backgroundColor === "rgba(0, 0, 0, 0)") behind = behind.parentElement;
    return [getComputedStyle(element).color, getComputedStyle(behind).backgroundColor];"""


def contrast(*colours: str) -> float:
    """Contrast ratio of two colours `rgb(r, g, b)`, 1 to 21. Source: WCAG 2.1, relative luminance."""
    luminances = []
    for colour in colours:
        rgb = numpy.array([int(part) for part in re.findall(r"\d+", colour)]) / 255
        linear = numpy.where(rgb <= 0.03928, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        luminances.append(linear @ (0.2126, 0.7152, 0.0722))
    return (max(luminances) + 0.05) / (min(luminances) + 0.05)


def test_a_thousand_runs_are_all_there(page, tmp_path):
    report = made_up_report(tmp_path, n_runs=999)
    path = tmp_path / "report/index.html"
    path.write_text(render(report), encoding="utf-8")
    page.get(path.as_uri())
    assert page.find_element(By.CSS_SELECTOR, ".count output").text == "1000 of 1000 runs"
    header(page, "seed").click()
    assert column(page, "seed") == [str(i) for i in range(999)] + [str(10**17)]

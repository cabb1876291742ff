import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy
import pytest

from helper.charts.bundle import chart_scripts
from study.reporting.page import Report, Row, Sheet, cell, image, link, render
from tests.made_up_report import FOLDER, HOSTILE, HOSTILE_NAMES, PICTURE_WIDTH, made_up_report, run_entries, write_picture

NAME_OF_SVG = "http://www.w3.org/2000/svg"  # in a script: no address that anything is fetched from
EMPTY = Report("Report", "results", "2026-01-02T03:04:05", "", (), ("data", "network"), ())


class Page(HTMLParser):
    """Elements with their attributes, and the text outside style and script; entities resolved."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements, self.text, self.scripts, self._in = [], "", [], None
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self._in = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        self._in = None

    def handle_data(self, data):
        if self._in == "script":
            self.scripts[-1] += data
        elif self._in != "style":
            self.text += data

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.elements)


@pytest.fixture
def report(tmp_path) -> Report:
    return made_up_report(tmp_path)


def data_of(page: Page) -> dict:
    return json.loads(page.scripts[0])


def test_hostile_texts_stay_texts(report):
    page = Page(render(report))
    assert page.count("img") == 2
    assert page.count("script") == 5  # data of runs and of charts; what draws them, and the page's own two
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    for text in HOSTILE_NAMES:
        assert text in page.text
    assert data_of(page)["runs"][-1]["name"] == FOLDER


def test_nothing_in_the_page_comes_from_elsewhere(report):
    html = render(report)
    assert not re.search(r"(?i)https?:|//\w+\.\w|@import|url\(", html.replace(chart_scripts(), "").replace(NAME_OF_SVG, ""))
    page = Page(html)
    assert not {tag for tag, _ in page.elements} & {"iframe", "object", "embed", "base", "form"}
    for tag, attributes in page.elements:
        assert attributes.get("src", "data:").startswith("data:"), (tag, attributes)
        assert re.match(r"#|data:,|[\w.%-]+$", attributes.get("href", "#")), (tag, attributes)


def test_links_are_paths_whatever_the_folder_is_called():
    assert link("../a b/#1?x=%41&y.png") == "../a%20b/%231%3Fx%3D%2541%26y.png"
    assert link("javascript:alert(1)") == "javascript%3Aalert%281%29"
    assert link(b"\xff.png".decode("utf-8", "surrogateescape")) == "%FF.png"


def test_a_name_that_is_no_text_can_be_written():
    name = b"runs/\xff".decode("utf-8", "surrogateescape")
    html = render(replace(EMPTY, root=name, runs=(Row(name, {}, {name: name}),)))
    assert html.encode("utf-8").decode("utf-8") == html


@pytest.mark.parametrize(
    ("value", "text", "key"),
    [
        (0.9, "0.9", 0.9),
        (0.123456, "0.1235", 0.123456),
        (0.90001, "0.9000", 0.90001),
        (27712.3, "27710", 27712.3),
        (9999.7, "10000", 9999.7),
        (1234.4, "1234", 1234.4),
        (1.5e-7, "1.5e-07", 1.5e-7),
        (2.71828e9, "2.718e+09", 2.71828e9),
        (-0.5, "-0.5", -0.5),
        (0.0, "0", 0),
        (12345678901234567, "12345678901234567", 12345678901234567),
        (numpy.float32(0.25), "0.25", 0.25),
        (numpy.int64(7), "7", 7),
        (None, "", None),
        (math.nan, "", None),
        (True, "true", None),
        ("sparse-scratch", "sparse-scratch", None),
        ("1,510 ± 27", "1,510 ± 27", 1510),
        ("-2.7e+04 ± 9", "-2.7e+04 ± 9", -27000),
        ("± 9", "± 9", None),
        ("0.96 [0.92, 1.00]", "0.96 [0.92, 1.00]", 0.96),
        ("0.7123 †", "0.7123 †", 0.7123),
        ("1,203 ‡", "1,203 ‡", 1203.0),
        ("12.1 ± 0.3 ‡", "12.1 ± 0.3 ‡", 12.1),
        ("3 (9 runs)", "3 (9 runs)", None),
    ],
)
def test_a_cell_shows_four_digits_and_sorts_by_all(value, text, key):
    assert (cell(value).text, cell(value).key) == (text, key)


def test_infinity_sorts_beyond_every_number_and_is_valid_json():
    assert cell(math.inf).text == "inf"
    assert json.loads(json.dumps(cell(math.inf).key, allow_nan=False)) > 1e308
    assert cell(-math.inf).key < -1e308


def test_rounding_to_four_digits_is_right_within_half_a_unit_of_the_fourth():
    for value in numpy.random.default_rng(0).lognormal(0, 8, 500):
        unit = 10.0 ** (math.floor(math.log10(value)) - 3)
        assert abs(float(cell(value).text) - value) <= 0.5 * unit * (1 + 1e-9)


def test_every_setting_of_every_run_can_be_had_back():
    runs = (Row("a", {}, {"lr": 0.1, "mode": "dense", "epochs": 3}), Row("b", {}, {"lr": 0.2, "mode": "dense"}))
    data = data_of(Page(render(replace(EMPTY, runs=runs))))
    assert data["common"] == {"mode": "dense"}
    assert data["flags"] == ["lr", "mode", "epochs"]
    restored = [data["common"] | run["settings"] for run in data["runs"]]
    assert restored == [{"mode": "dense", "lr": "0.1", "epochs": "3"}, {"mode": "dense", "lr": "0.2"}]


def test_the_summary_counts_runs_data_sets_and_networks():
    runs = tuple(Row(str(i), {"data": "digits", "network": f"mlp{i}"}, {}) for i in range(2))
    assert "2 runs, 1 data set, 2 networks in results, 2026-01-02 03:04:05" in Page(render(replace(EMPTY, runs=runs))).text


def test_an_empty_report_says_that_there_is_no_run():
    page = Page(render(EMPTY))
    assert "There is no finished run." in page.text
    assert "0 runs in results" in page.text
    assert page.count("table") == 0


def test_a_thousand_runs_take_less_than_two_megabytes():
    html = render(replace(EMPTY, columns=("data", "mode", "sparsity", "seed", "acc_test", "fisher"), runs=run_entries(1000)))
    assert len(html.encode()) < 2_000_000
    assert len(data_of(Page(html))["runs"]) == 1000


def test_a_figure_has_its_size_at_150_dots_per_inch(tmp_path, report):
    assert image(report.sections[0].pictures[0])["width"] == round(PICTURE_WIDTH / 150 * 96)


def test_what_is_no_png_file_is_refused_by_name(tmp_path, report):
    path = write_picture(tmp_path / "figure.png")
    path.write_bytes(path.read_bytes()[1:])
    with pytest.raises(ValueError, match=r"figure\.png is no PNG file"):
        image(replace(report.sections[0].pictures[0], file=path))


def test_a_row_that_does_not_fit_its_columns_is_refused(report):
    sheet = Sheet("table 9", "", "", ("a", "b"), ((1, 2), (3,)))
    section = replace(report.sections[0], sheets=(sheet,))
    with pytest.raises(ValueError, match="table 9: a row has 1 cells, but there are 2 columns"):
        render(replace(report, sections=(section,)))


def test_the_policy_allows_the_pages_own_script_and_no_inline_code(report):
    policy = dict(element for element in Page(render(report)).elements if element[1].get("http-equiv"))["meta"]["content"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert HOSTILE not in policy

"""What every comparison of two runs does: its folder, what counts as finished, what may be compared."""

import json

import numpy
import pandas
import pytest
from matplotlib import pyplot as plt

from helper.mask import Mask
from helper.schema.config import unflatten
from optim.config import RunConfig
from optim.folder import RunFolder
from study.comparing.comparison import Comparison, Drawn, check_comparable
from study.runs import LoadedRun


def loaded(results, name: str, **flags) -> LoadedRun:
    """A run without weights and data, which nothing here looks at."""
    folder = RunFolder(results / "digits" / "mlp" / "dense" / name)
    return LoadedRun(folder, unflatten(RunConfig, flags), None, Mask(), None)


@pytest.fixture
def comparison(tmp_path) -> Comparison:
    runs = (loaded(tmp_path, "a-01234567"), loaded(tmp_path, "b-89abcdef"))
    made = Comparison("kind", runs, {"points": 3}, ("line.csv", "cosines.npz"))
    made.folder.mkdir(parents=True)
    made.write_tables({"line.csv": pandas.DataFrame({"loss": [0.5]}), "cosines.npz": {"cosines": numpy.arange(3)}})
    made.finish("A title", [Drawn("figure6", "figure 6", "A figure", "Its caption", plt.figure())], [{"n": 1}], 1.234)
    return made


def test_a_finished_comparison_is_found_with_its_files_beside_it(comparison):
    assert comparison.folder.name == "kind_01234567_89abcdef"
    assert comparison.stored() == {
        "kind": "kind",
        "title": "A title",
        "runs": ["digits/mlp/dense/a-01234567", "digits/mlp/dense/b-89abcdef"],
        "figures": [{"id": "figure 6", "file": "figures/figure6.png", "title": "A figure", "caption": "Its caption"}],
        "numbers": [{"n": 1}],
        "settings": {"points": 3},
        "seconds": 1.23,
    }
    names = {path.relative_to(comparison.folder).as_posix() for path in comparison.folder.rglob("*") if path.is_file()}
    assert names == {"line.csv", "cosines.npz", "result.json", "figures/figure6.png", "figures/figure6.pdf"}


@pytest.mark.parametrize("gone", ["line.csv", "cosines.npz", "figures/figure6.png", "result.json"])
def test_a_comparison_that_lacks_a_file_is_not_finished(comparison, gone):
    (comparison.folder / gone).unlink()
    assert comparison.stored() is None


@pytest.mark.parametrize(
    "change",
    [{"settings": {"points": 4}}, {"numbers": [1]}, {"numbers": None}, {"figures": [{}]}, {"figures": 3}, None],
)
def test_a_result_of_other_settings_or_another_layout_does_not_count(comparison, change):
    path = comparison.folder / "result.json"
    path.write_text("{" if change is None else json.dumps(json.loads(path.read_text()) | change))
    assert comparison.stored() is None


def test_a_cleared_comparison_has_neither_result_nor_figures(comparison):
    comparison.clear()
    assert {path.name for path in comparison.folder.rglob("*")} == {"line.csv", "cosines.npz", "figures"}


def test_runs_are_comparable_wherever_their_data_lie(tmp_path):
    check_comparable(
        [loaded(tmp_path, "a-0"), loaded(tmp_path, "b-1", root="elsewhere", verify_data=False)], ["data", "network"]
    )


@pytest.mark.parametrize(("flag", "value"), [("limit_train", 200), ("hidden_dims", "16")])
def test_a_flag_in_which_runs_differ_is_named(tmp_path, flag, value):
    with pytest.raises(RuntimeError, match=f"--{flag} {value}"):
        check_comparable([loaded(tmp_path, "a-0"), loaded(tmp_path, "b-1", **{flag: value})], ["data", "network"])

"""The comparison of two versions' files: what is equal, what differs, what is only added."""

import io
import json

import numpy
import pytest
import torch

from scripts.compare_versions import in_any_run, shortened, with_needed
from scripts.version_files import Finding, compare_contents, compare_folders, compare_tables, compare_values
from scripts.version_runs import CASES, Case, Failed, Program

TABLE = "epoch,acc,seconds\n0,0.5,1.25\n1,0.75,1.5\n"
ORDER = "columns: the old ones do not come first: epoch,acc,seconds ->"


def lines(findings) -> list[str]:
    return [("added: " if finding.added else "") + str(finding) for finding in findings]


def saved(state: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def zipped(**arrays: object) -> bytes:
    buffer = io.BytesIO()
    numpy.savez(buffer, **arrays)
    return buffer.getvalue()


def contents(name: str, old: bytes, new: bytes, tmp_path) -> list[str]:
    return lines(compare_contents(tmp_path / name, old, new))


# ------------------------------------------------------------------------------------------------------------- tables


def test_tables_that_differ_in_timings_only_are_equal():
    assert not lines(compare_tables(TABLE, TABLE.replace("1.25", "9.5").replace("1.5\n", "8\n")))


@pytest.mark.parametrize(
    ("new", "expected"),
    [
        (TABLE.replace("0.75", "0.750"), ["row 2, acc: 0.75 -> 0.750"]),
        (TABLE.replace("0.75", ""), ["row 2, acc: 0.75 -> (empty)"]),
        (TABLE.replace("1,0.75,1.5\n", ""), ["rows: 2 -> 1"]),
        (TABLE + "2,0.8,1\n", ["rows: 2 -> 3"]),
        ("epoch,seconds\n0,1\n1,1\n", ["acc: the column is gone"]),
        ("epoch,acc\n0,0.5\n1,0.75\n", ["seconds: the column is gone"]),
        ("acc,epoch,seconds\n0.5,0,1\n0.75,1,1\n", [f"{ORDER} acc,epoch,seconds"]),
        ("epoch,acc,seconds,cost\n0,0.5,1,7\n1,0.75,1,8\n", ["added: cost: a new column"]),
        (
            "epoch,cost,acc,seconds\n0,7,0.5,1\n1,8,0.75,1\n",
            ["added: cost: a new column", f"{ORDER} epoch,cost,acc,seconds"],
        ),
        ("", ["epoch: the column is gone", "acc: the column is gone", "seconds: the column is gone", "rows: 2 -> 0"]),
    ],
    ids=["spelling", "emptied", "lost row", "further row", "lost column", "lost timing", "order", "added", "inserted", "empty"],
)  # fmt: skip
def test_a_cell_a_row_a_column_that_changes_is_found(new, expected):
    assert lines(compare_tables(TABLE, new)) == expected


def test_a_table_may_grow_where_that_is_asked_for_but_not_shrink_or_change():
    assert not lines(compare_tables(TABLE, TABLE + "2,0.8,1\n", may_grow=True))
    assert lines(compare_tables(TABLE + "2,0.8,1\n", TABLE, may_grow=True)) == ["rows: 3 -> 2"]
    assert lines(compare_tables(TABLE, TABLE.replace("0.5", "0.6") + "2,0.8,1\n", may_grow=True)) == ["row 1, acc: 0.5 -> 0.6"]


def test_a_cell_with_commas_is_one_cell():
    old = 'epoch,settings\n0,"{""a"": 1, ""b"": 2}"\n'
    assert lines(compare_tables(old, old.replace("2}", "3}"))) == ['row 1, settings: {"a": 1, "b": 2} -> {"a": 1, "b": 3}']


# ------------------------------------------------------------------------------------------------------------- values


def test_values_are_equal_to_the_bit_and_nan_is_itself():
    old = {"a": [1, 2.5, float("nan")], "b": {"c": None}, "t": torch.tensor([float("nan"), 1.0])}
    same = {"a": [1, 2.5, float("nan")], "b": {"c": None}, "t": torch.tensor([float("nan"), 1.0])}
    assert not lines(compare_values(old, same))


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ({"a": {"b": 1}}, {"a": {"b": 2}}, ["a, b: 1 -> 2"]),
        ({"a": 1, "b": 2}, {"a": 1}, ["b: 2 is gone"]),
        ({"a": 1}, {"a": 1, "b": 2}, ["added: b: new"]),
        ({"a": 1}, {"a": 1.0}, ["a: 1 -> 1.0"]),
        ({"a": 1}, {"a": True}, ["a: 1 -> True"]),
        ([0.0], [-0.0], ["0: 0.0 -> -0.0"]),
        ([1, 2], [1, 2, 3], ["[1, 2] -> [1, 2, 3]"]),
        ({"a": {"b": 1}}, {"a": 1}, ["a: {'b': 1} -> 1"]),
    ],
)
def test_a_value_that_changes_is_found_and_a_new_one_listed(old, new, expected):
    assert lines(compare_values(old, new)) == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.bool])
def test_tensors_of_every_type_are_compared_element_by_element(dtype):
    old = torch.tensor([[1, 0, 1], [1, 1, 0]]).to(dtype)
    new = old.clone()
    assert not lines(compare_values({"w": old}, {"w": new}))
    new[1, 1] = 0
    (line,) = lines(compare_values({"w": old}, {"w": new}))
    assert line.startswith("w: 1 of 6 values differ, the first at 4: ")


def test_one_bit_of_a_weight_is_found_and_the_order_in_memory_is_not():
    old = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    assert not lines(compare_values(old, old.to(memory_format=torch.channels_last)))
    new = old.clone()
    new.view(torch.int32)[3, 2, 1, 1] ^= 1
    (line,) = lines(compare_values(old, new))
    assert line.startswith("1 of 48 values differ, the first at 47: ")
    zero = torch.zeros(3)
    assert lines(compare_values(zero, -zero)) == ["3 of 3 values differ, the first at 0: 0.0 -> -0.0"]


def test_types_and_shapes_of_tensors_and_arrays_count():
    tensor = torch.zeros(2, 3)
    assert lines(compare_values(tensor, tensor.double())) == ["torch.float32 (2, 3) -> torch.float64 (2, 3)"]
    assert lines(compare_values(tensor, tensor.T)) == ["torch.float32 (2, 3) -> torch.float32 (3, 2)"]
    assert len(lines(compare_values(tensor, tensor.numpy()))) == 1
    assert not lines(compare_values(torch.zeros(0), torch.zeros(0)))
    assert not lines(compare_values(torch.tensor(1.5), torch.tensor(1.5)))


# -------------------------------------------------------------------------------------------------------------- files


def test_states_of_other_bytes_are_equal_by_their_tensors_and_damage_is_found(tmp_path):
    old = saved({"weights": {"w": torch.ones(2)}, "epoch": 3})
    assert contents("model.pt", old, saved({"weights": {"w": torch.ones(2)}, "epoch": 3, "steps": 9}), tmp_path) == [
        "added: steps: new"
    ]
    new = saved({"weights": {"w": torch.tensor([1.0, 2.0])}, "epoch": 3})
    assert contents("model.pt", old, new, tmp_path) == ["weights, w: 1 of 2 values differ, the first at 1: 1.0 -> 2.0"]
    (line,) = contents("model.pt", old, old[:200], tmp_path)
    assert line.startswith("cannot be compared, ")


def test_arrays_with_numbers_and_texts_are_compared(tmp_path):
    old = zipped(values=numpy.array([1.0, 2.0]), settings="{}", seconds=0.5)
    more = zipped(values=numpy.array([1.0, 2.0]), settings="{}", seconds=0.75, more=1)
    assert contents("spectrum.npz", old, more, tmp_path) == ["added: more: new"]
    assert contents("spectrum.npz", old, zipped(values=numpy.array([1.0, 2.5]), settings="[]"), tmp_path) == [
        "values: 1 of 2 values differ, the first at 1: 2.0 -> 2.5", "settings: 1 of 1 values differ, the first at 0: {} -> []",
    ]  # fmt: skip


def test_of_a_summary_what_says_something_of_the_run_counts(tmp_path):
    summary = {"acc": 0.5, "seconds": {"training": 1}, "git": {"commit": "a"}, "checksum": "x", "files": {"history.csv": "1"}}
    other = {"acc": 0.5, "seconds": {"training": 2}, "git": {"commit": "b"}, "checksum": "y", "files": {"history.csv": "2"}}
    old = json.dumps(summary).encode()
    assert not contents("summary.json", old, json.dumps(other).encode(), tmp_path)
    other |= {"acc": 0.25, "files": {"model.pt": "3"}, "steps": 7}
    assert contents("summary.json", old, json.dumps(other).encode(), tmp_path) == [
        "acc: 0.5 -> 0.25", "files, history.csv: a hash is gone", "added: files, model.pt: new", "added: steps: new",
    ]  # fmt: skip


def test_settings_are_compared_by_value_and_a_lost_one_is_found(tmp_path):
    assert not contents("config.yaml", b"lr: 0.1\nmode: dense\n", b"mode: dense\nlr: 0.10\n", tmp_path)
    assert contents("config.yaml", b"lr: 0.1\nmode: dense\n", b"lr: 0.2\n", tmp_path) == [
        "lr: 0.1 -> 0.2",
        "mode: dense is gone",
    ]


def test_folders_are_compared_below_the_patterns_and_a_lost_one_is_one_line(tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    for root, name in ((old, "dense/run-1234"), (new, "dense/run-5678")):
        for file in ("history.csv", "states/a.pt", ".lock"):
            path = root / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("epoch\n0\n")
    for root, text in ((old, "epoch\n0\n"), (new, "epoch\n1\n")):
        for place in ("lottery", "sweep"):
            (root / place).mkdir()
            (root / place / "history.csv").write_text(text)
    found = compare_folders(old, new, ["dense", "lottery"])
    assert lines(found.different) == ["dense/run-1234: is gone", "lottery/history.csv, row 1, epoch: 0 -> 1"]
    assert lines(found.added) == ["added: dense/run-5678: new"]
    assert found.counts == {"tables": 1}
    assert compare_folders(old, old, ["dense"]).findings == []
    assert compare_folders(old, new, ["absent"]).different, "nothing compared is no equality"


def test_the_first_differences_of_each_file_are_shown_and_the_rest_counted():
    findings = [Finding((file, f"row {i}"), "1 -> 2") for file in ("a", "b") for i in range(14)]
    found = list(shortened(findings))
    assert len(found) == 26
    assert found[12] == "a: and 2 more"
    assert in_any_run(Finding(("digits/run-1/history.csv", "cost"), "a new column")) == "history.csv, cost: a new column"


# --------------------------------------------------------------------------------------------------------------- runs


def test_cases_are_ordered_after_what_they_need_and_have_a_result_of_their_own():
    for case in CASES:
        before = [other.name for other in with_needed([case.name])]
        assert before[-1] == case.name
        assert set(case.needs) < set(before)
    assert len({pattern for case in CASES for pattern in case.leaves}) == sum(len(case.leaves) for case in CASES)
    assert len({case.name for case in CASES}) == len(CASES)


@pytest.fixture
def program(tmp_path):
    """A checkout whose run.py ends as its first word says and prints its words."""
    (tmp_path / "run.py").write_text("import sys\nprint('is', *sys.argv[2:])\nsys.exit(int(sys.argv[1]))\n")
    return Program(tmp_path, tmp_path)


def test_a_command_that_fails_or_does_not_find_its_run_is_said(program):
    assert program.run("run.py 0 found") == "is found\n"
    with pytest.raises(Failed, match="exit code 3, not 0: is lost"):
        program.run("run.py 3 lost")
    Case("a", ("run.py 0 finished",), ("a",)).repeat(program)
    with pytest.raises(Failed, match="the old run is not found"):
        Case("a", ("run.py 0 training",), ("a",)).repeat(program)


def test_a_word_with_a_star_stands_for_the_paths_in_the_programs_own_folder(program):
    for name in ("b", "a"):
        (program.place / "results" / name).mkdir(parents=True)
    assert program.run("run.py 0 results/*") == "is results/a results/b\n"
    assert program.run("run.py 0 results/*/none") == "is results/*/none\n"

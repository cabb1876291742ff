"""One way to read a value: in a file of flags, in a sweep, in a stored config.yaml and on the command line, by YAML 1.2."""

import math
import sys

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import experiment
import run as command_line
from helper.schema.config import all_flags, flatten, unflatten
from helper.untrusted.yaml_text import core_value, read_yaml, write_yaml
from optim.config import RunConfig
from optim.folder import RunFolder
from optim.model import stored_config
from study.sweeping.plan import read_sweep
from tests.outcome import outcome

CORE = {  # YAML 1.2.2, sections 10.2 and 10.3.2; most of them are something else in version 1.1
    "010": 10, "012": 12, "08": 8, "-010": -10, "+7": 7, "0o10": 8, "0x1F": 31, "0b11": "0b11", "1:30": "1:30",
    "1:30.5": "1:30.5", "1_000": "1_000", "1_0.5": "1_0.5", "no": "no", "NO": "NO", "yes": "yes", "on": "on", "Off": "Off",
    "y": "y", "true": True, "False": False, "tRUE": "tRUE", "~": None, "Null": None, "nULL": "nULL", "1e3": 1000.0,
    "1E-2": 0.01, ".5": 0.5, "5.": 5.0, "-.5": -0.5, "+12e03": 12000.0, ".inf": math.inf, "-.INF": -math.inf,
    "2020-01-01": "2020-01-01", "1024-64-32": "1024-64-32", "=": "=", "1.2.3": "1.2.3", "0.": 0.0, "-0": 0, "e3": "e3",
    "+": "+", ".": ".",
}  # fmt: skip


@pytest.mark.parametrize("word", CORE)
def test_a_plain_word_is_what_the_core_schema_of_yaml_1_2_says(word):
    expected = CORE[word]
    for text in (f"a: {word}\n", f"a: [{word}]\n", f"a: &x {word}\nb: *x\n"):
        found = read_yaml(text)["a"]
        found = found[0] if isinstance(found, list) else found
        assert (found, type(found)) == (expected, type(expected))
    assert read_yaml(f"a: '{word}'") == {"a": word}
    assert read_yaml(f"a: {word}", words=True)["a"] == (None if expected is None else word)


def test_tags_convert_by_the_same_schema_and_others_are_refused():
    assert read_yaml("[!!int 010, !!float 1, !!str 010, !!null ~, !!bool TRUE]") == [10, 1.0, "010", None, True]
    for text in ("!!int 1_000", "!!float 1:30", "!!bool yes", "!!null no", "!!timestamp 2020-01-01", "!!binary aa", "!!set {a}",
                 "!!omap [a: 1]", "!!int 1.5", "!x 1"):  # fmt: skip
        with pytest.raises(yaml.YAMLError):
            read_yaml(text)


# ------------------------------------------------------------------------------------------------ files and command line


def by_file(path, name, word):
    path.write_text(f"{name}: {word}\n")
    return outcome(command_line.main, "--config", path, "--print_config")


AGREE = [
    ("batch_size", "010"), ("batch_size", "0o10"), ("batch_size", "1e2"), ("batch_size", "1_000"), ("batch_size", "1:30"),
    ("batch_size", "0x10"), ("batch_size", "1.5"), ("batch_size", "1e23"), ("batch_size", "+8"), ("batch_size", "٣"),
    ("random_state", "012"), ("random_state", "2020-01-01"), ("random_state", "no"), ("lr", ".5"), ("lr", "1e-3"),
    ("lr", "1_0.5"), ("lr", "1:30"), ("lr", "010"), ("lr", "nan"), ("lr", ".nan"), ("lr", "true"), ("download", "no"),
    ("download", "on"), ("download", "y"), ("download", "TRUE"), ("download", "010"), ("hidden_dims", "010"),
    ("hidden_dims", "1024-064-32"), ("hidden_dims", "1_0-5"), ("hidden_dims", "2020-01-01"), ("lr_milestones", "012"),
    ("save_epochs", "0-012"), ("save_epochs", "1_0"), ("results_root", "010"), ("results_root", "1e3"), ("results_root", "no"),
    ("results_root", "2020-01-01"), ("results_root", "~"), ("pretrain_model_path", "~"), ("pretrain_model_path", "1_000"),
    ("limit_train", "null"), ("limit_train", "Null"), ("select", "y"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "word"), AGREE)
def test_a_file_and_the_command_line_read_a_word_alike(tmp_path, name, word):
    written, typed = by_file(tmp_path / "a.yaml", name, word), outcome(command_line.main, f"--{name}", word, "--print_config")
    assert written.code == typed.code
    assert read_yaml(written.out) == read_yaml(typed.out) if typed.code == 0 else f"--{name}" in written.line


@pytest.mark.parametrize(
    ("name", "word", "value"),
    [
        ("batch_size", "010", 10), ("random_state", "012", 12), ("random_state", "1e3", 1000), ("batch_size", "0o10", 8),
        ("lr", "010", 10.0), ("lr", ".5", 0.5), ("download", "no", False), ("results_root", "no", "no"),
        ("results_root", "010", "010"), ("results_root", "1e3", "1e3"), ("results_root", "1:30", "1:30"),
        ("hidden_dims", "010", "10"), ("results_root", "2020-01-01", "2020-01-01"), ("limit_train", "~", None),
    ],
)  # fmt: skip
def test_what_is_read(tmp_path, name, word, value):
    assert read_yaml(by_file(tmp_path / "a.yaml", name, word).out)[name] == value
    file = tmp_path / "sweep.yaml"
    for text in (f"grid: {{mode: dense, {name}: {word}}}", f"flags: {{{name}: {word}}}\ngrid: {{mode: [dense]}}"):
        file.write_text(text)
        (config,) = read_sweep(file, {})
        assert flatten(config)[name] == value
    file.write_text("grid: {mode: dense}")
    (config,) = read_sweep(file, {name: [word]})
    assert flatten(config)[name] == value
    folder = RunFolder(tmp_path)
    folder.config.write_text(f"{name}: {word}\n")
    assert flatten(stored_config(folder))[name] == value


def test_a_preset_that_a_sweep_names_is_read_alike(tmp_path):
    (tmp_path / "preset.yaml").write_text("batch_size: 010\nresults_root: 010\ndownload: no\n")
    (tmp_path / "sweep.yaml").write_text("config: preset.yaml\ngrid: {random_state: [010, 1e3, 0x10]}\n")
    configs = read_sweep(tmp_path / "sweep.yaml", {})
    assert [config.random_state for config in configs] == [10, 1000, 16]
    assert {(c.train.batch_size, c.results_root, c.data.download) for c in configs} == {(10, "010", False)}


def test_values_with_commas_between_are_read_alike(tmp_path, monkeypatch, capsys):
    (tmp_path / "sweep.yaml").write_text("grid: {mode: dense}\n")
    monkeypatch.chdir(tmp_path)
    words = ("--random_state", "010, 1e3,0x10", "--save_fisher", "0", "--n_epochs", "1", "--dry_run")
    found = outcome(experiment.main, "sweep", "sweep.yaml", *words)
    assert found.code == 0
    assert sorted(line.split("-s")[1].split("-")[0] for line in found.out.splitlines() if "-s" in line) == ["10", "1000", "16"]


@pytest.mark.parametrize("word", ["1_000", "1:30", "no", "0b1", "2020-01-01", "1e400", "1e23"])
def test_what_is_no_integer_is_refused_with_flag_and_word_wherever_it_stands(tmp_path, word):
    (tmp_path / "sweep.yaml").write_text(f"grid: {{mode: dense, random_state: [{word}]}}\n")
    for found in (
        by_file(tmp_path / "a.yaml", "random_state", word), outcome(command_line.main, "--random_state", word),
        outcome(experiment.main, "sweep", tmp_path / "sweep.yaml", "--dry_run"),
    ):  # fmt: skip
        assert found.code == 2
        assert f"--random_state {word}: expected an integer" in found.line


@pytest.mark.parametrize("zero", ["0", "00", "0x0", "-0", "0.0", "0e5", "0o0"])
def test_a_sweep_refuses_the_seed_0_however_it_is_written(tmp_path, zero):
    (tmp_path / "sweep.yaml").write_text(f"grid: {{mode: dense, random_state: [1, {zero}]}}\n")
    found = outcome(experiment.main, "sweep", tmp_path / "sweep.yaml", "--dry_run")
    assert (found.code, "draws another seed at every call" in found.line) == (2, True)


# -------------------------------------------------------------------------------------------------------- keys, merges


@pytest.mark.parametrize(
    "text",
    ["lr: 1\nlr: 1\n", "lr: 1\n'lr': 2\n", "{lr: 1, lr: 2}", "a: {b: {c: 1, c: 2}}", "a: [{b: 1, b: 2}]",
     "a: &x {b: 1}\nc: {<<: *x, d: 1, d: 2}\n", "on: 1\non: 2\n"],
)  # fmt: skip
def test_a_key_that_stands_twice_is_refused(tmp_path, text):
    with pytest.raises(yaml.YAMLError, match="stands twice"):
        read_yaml(text)
    (tmp_path / "a.yaml").write_text(text)
    for words in ((command_line.main, "--config"), (experiment.main, "sweep")):
        found = outcome(*words, tmp_path / "a.yaml")
        assert found.code == 2
        assert "stands twice" in found.line
        assert "a.yaml" in found.line


def test_merged_mappings_give_way_to_the_mappings_own_keys_and_to_earlier_ones():
    text = "a: &a {x: 1, y: 1}\nb: &b {<<: *a, x: 2}\nc: {<<: *b}\nd: {<<: [*b, *a], y: 4}\ne: {z: {<<: *b, x: 5}}\n"
    found = read_yaml(text)
    assert found["c"] == {"x": 2, "y": 1}
    assert found["d"] == {"x": 2, "y": 4}
    assert found["e"] == {"z": {"x": 5, "y": 1}}
    nested = "p: {q: &b {<<: &a {x: 1}, x: 2}}\nc: {<<: *b}\n"
    assert read_yaml(nested) == {"p": {"q": {"x": 2}}, "c": {"x": 2}}
    with pytest.raises(yaml.YAMLError, match="<<"):
        read_yaml("a: {<<: 3}")


def test_keys_are_words_and_never_truth_values(tmp_path):
    assert read_yaml("on: 1\ny: 2\nno: 3\n") == {"on": 1, "y": 2, "no": 3}
    (tmp_path / "a.yaml").write_text("on: 1\n")
    assert "on: no such flag" in outcome(command_line.main, "--config", tmp_path / "a.yaml").line


# ----------------------------------------------------------------------------------------------------------- round trip


LOOKS = st.one_of(
    st.sampled_from(sorted(CORE)), st.dates().map(str), st.datetimes().map(str), st.integers().map(str), st.floats().map(str),
    st.from_regex(r"[-+]?[0-9._:xoe]{1,6}", fullmatch=True), st.text(max_size=8),
    st.sampled_from(["<<", "null ", " 1", "a: b", "- a", "#", "a #b", *"{[|>%@`'\"-=", "&a", "*a", "!a"]),
)  # fmt: skip
PLAIN = st.one_of(LOOKS, st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False))
QUICK = settings(
    max_examples=150, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck), print_blob=False
)


@QUICK
@given(values=st.dictionaries(LOOKS, PLAIN | st.lists(PLAIN, max_size=3), max_size=4))
def test_what_is_written_is_read_back_equal_by_either_version(values):
    text = write_yaml(values)
    printable = all(_is_yaml_text(word) for word in words_in(values))
    assert not printable or read_yaml(text) == values
    assert not printable or typed(yaml.safe_load(text)) == typed(values)


def words_in(values):
    for key, value in values.items():
        yield key
        yield from (word for word in (value if isinstance(value, list) else [value]) if isinstance(word, str))


def _is_yaml_text(word: str) -> bool:
    return not any(0xD800 <= ord(c) <= 0xDFFF for c in word)


def typed(values):
    return {key: [(type(v), v) for v in (value if isinstance(value, list) else [value])] for key, value in values.items()}


FLOATS = st.floats(0, 1, exclude_max=True)
NAMES = LOOKS.filter(lambda word: word.isprintable() and word != "" and core_value(word) is not None)


@QUICK
@given(
    root=NAMES, filename=NAMES, lr=st.floats(0, 1e6), momentum=FLOATS, seed=st.integers(1, 2**53),
    widths=st.lists(st.integers(1, 99)), switch=st.booleans(), limit=st.none() | st.integers(1, 99),
)  # fmt: skip
def test_any_configuration_is_read_back_from_what_is_printed_and_stored(
    tmp_path_factory, root, filename, lr, momentum, seed, widths, switch, limit
):
    given_flags = {
        "results_root": root, "filename": filename, "lr": lr, "momentum": momentum, "random_state": seed, "nesterov": False,
        "hidden_dims": "-".join(map(str, widths)), "download": switch, "limit_train": limit,
    }  # fmt: skip
    config = unflatten(RunConfig, given_flags)
    folder = RunFolder(tmp_path_factory.getbasetemp())
    folder.config.write_text(write_yaml({name: value for name, value in flatten(config).items() if value is not None}))
    assert stored_config(folder) == config
    words = [f"--{name}={value}" for name, value in given_flags.items() if value is not None]
    printed = outcome(command_line.main, *words, "--print_config")
    assert printed.code == 0, printed.err
    again = folder.path / "printed.yaml"
    again.write_text(printed.out)
    assert outcome(command_line.main, "--config", again, "--print_config").out == printed.out
    assert unflatten(RunConfig, read_yaml(printed.out, words=True)) == config


def test_the_numbers_of_every_float_are_written_exactly():
    for number in (5e-324, 1e-5, 0.1, 1 / 3, 1e16, 1e22, sys.float_info.max, 2e-4):
        assert read_yaml(write_yaml({"lr": number})) == {"lr": number}
        assert unflatten(RunConfig, read_yaml(write_yaml({"lr": number}), words=True)).train.lr == number


def test_every_default_is_read_back():
    flat = flatten(RunConfig())
    assert read_yaml(write_yaml(flat)) == flat
    assert unflatten(RunConfig, read_yaml(write_yaml(flat), words=True)) == RunConfig()
    assert set(flat) == set(all_flags(RunConfig))

"""Sweep files -> runs."""

import collections

import pytest

from helper.schema.config import FlagError, all_flags, unflatten
from helper.system.versions import ROOT
from optim.config import RunConfig
from study.sweeping.job import Job
from study.sweeping.plan import PlannedRun, expand, plan, read_sweep

SWEEPS = sorted((ROOT / "scripts/paper").glob("**/*.yaml"))


@pytest.fixture
def written(tmp_path):
    """written(text) -> path of a sweep file."""

    def write(text: str):
        (tmp_path / "sweep.yaml").write_text(text)
        return tmp_path / "sweep.yaml"

    return write


def names(runs: list[PlannedRun]) -> list[str]:
    return [f"{run.config.mode} {run.config.prune.prune_ratio:g} {run.config.random_state}" for run in runs]


def test_the_grid_is_the_product_of_its_values_and_the_last_flag_varies_fastest():
    configs = expand({"mode": ["sparse-finetune", "lottery"], "prune_ratio": [0.5, 0.9], "lr": 0.1})
    assert [(c.mode, c.prune.prune_ratio) for c in configs] == [
        ("sparse-finetune", 0.5), ("sparse-finetune", 0.9), ("lottery", 0.5), ("lottery", 0.9),
    ]  # fmt: skip


def test_every_dense_parent_comes_first_and_once_and_equal_runs_are_one(written):
    file = written(
        "grid:\n"
        "  - {mode: [sparse-scratch, dense], prune_ratio: [0.5, 0.9], random_state: [1, 2]}\n"
        "  - {mode: sparse-scratch, prune_ratio: 0.9, random_state: 2}\n"
        "  - {mode: sparse-scratch, prune_ratio: 0.9, random_state: 2, n_epochs_pretrain: 3, lr_milestones_pretrain: 2}\n"
    )
    runs = plan(read_sweep(file, {}))
    dense = ["dense 0.5 1", "dense 0.5 2", "dense 0.9 2"]  # the ratio does not act on them; the third has 3 epochs
    sparse = ["sparse-scratch 0.5 1", "sparse-scratch 0.5 2", "sparse-scratch 0.9 1", "sparse-scratch 0.9 2"]
    assert names(runs) == [*dense, *sparse, "sparse-scratch 0.9 2"]
    assert len({run.name for run in runs}) == len(runs)
    parents = {run.name: run.parent for run in runs}
    assert [parents[run.parent] for run in runs if run.parent] == [None] * 5


def test_flags_of_the_command_line_take_the_place_of_the_files(written):
    file = written("flags: {lr: 0.5}\ngrid: {mode: sparse-scratch, prune_ratio: [0.5, 0.9], random_state: [1, 2, 3]}")
    configs = read_sweep(file, {"prune_ratio": ["0.7"], "random_state": ["4", "5"], "lr": ["0.25"], "batch_size": ["16", "32"]})
    assert len(configs) == 4
    assert {c.train.lr for c in configs} == {0.25}
    assert {c.prune.prune_ratio for c in configs} == {0.7}


def test_what_looks_like_a_date_is_a_list_of_widths(written):
    (config,) = read_sweep(written("grid: {hidden_dims: 1024-64-32}"), {})
    assert config.network.hidden_dims == "1024-64-32"


def test_equal_runs_are_measured_as_either_asks():
    runs = plan([*expand({"mode": "sparse-finetune"}), *expand({"mode": "dense", "save_jacobian": 1, "metric_every": 5})])
    dense = runs[0].config
    assert (dense.mode, dense.metrics.save_jacobian, dense.metrics.metric_every, len(runs)) == ("dense", True, 5, 2)
    assert not runs[1].config.metrics.save_jacobian


@pytest.mark.parametrize("dense_first", [False, True])
def test_a_run_that_a_sweep_names_is_measured_as_it_says_there_wherever_it_stands(dense_first):
    flags = {"save_hessian": 1, "hessian_method": "hutchinson", "monte_carlo_samples": 77, "metric_split": "test"}
    named, child = expand({"mode": "dense", **flags}), expand({"mode": "sparse-finetune"})
    (dense, *_) = plan([*named, *child] if dense_first else [*child, *named])
    metrics = dense.config.metrics
    assert {name: getattr(metrics, name) for name in flags} == flags
    assert metrics.save_fisher  # as the child asks


def test_what_only_the_other_of_two_equal_runs_measures_is_measured_as_that_one_says():
    runs = plan(
        [*expand({"mode": "dense", "save_jacobian": 1, "jacobian_method": "exact", "save_fisher": 0}),
         *expand({"mode": "dense", "save_fisher": 1, "fisher_method": "vmap"})]
    )  # fmt: skip
    metrics = runs[0].config.metrics
    assert (metrics.save_jacobian, metrics.jacobian_method) == (True, "exact")
    assert (metrics.save_fisher, metrics.fisher_method) == (True, "vmap")


@pytest.mark.parametrize(("one", "other", "both"), [(6, 4, 2), (0, 4, 4), (6, 0, 6), (3, 3, 3)])
def test_equal_runs_are_measured_at_the_epochs_of_either(one, other, both):
    runs = plan([*expand({"mode": "dense", "metric_every": one}), *expand({"mode": "dense", "metric_every": other})])
    assert [run.config.metrics.metric_every for run in runs] == [both]


def test_flags_can_come_from_a_file_beside_the_sweep(written, tmp_path):
    (tmp_path / "common.yaml").write_text("lr: 0.3\nmomentum: 0.5\n")
    (config,) = read_sweep(written("config: common.yaml\nflags: {momentum: 0.6}\ngrid: {n_epochs: 40}"), {})
    assert (config.train.lr, config.train.momentum, config.train.n_epochs) == (0.3, 0.6, 40)


def test_the_words_of_a_run_make_the_same_run():
    flags = {"mode": "sparse-scratch", "nesterov": True, "save_snr": False, "lr": 0.3, "limit_train": 50}
    (run,) = [run for run in plan([unflatten(RunConfig, flags)]) if run.config.mode != "dense"]
    words = run.flags()
    given = dict(zip(words[::2], words[1::2], strict=True))
    assert unflatten(RunConfig, {name.removeprefix("--"): value for name, value in given.items()}) == run.config


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("grid: {prune_ration: [0.5]}", "--prune_ration: no such flag; did you mean prune_ratio?"),
        ("flags: {lr: fast}\ngrid: {random_state: 1}", "--lr fast"),
        ("grid: {}", "grid: is empty"),
        ("flags: {lr: 0.1}", "grid: is empty"),
        ("grid: {random_state: []}", "random_state has no values"),
        ("grid: [1, 2]", "grid: expected a mapping"),
        ("flags: [1]\ngrid: {lr: 1}", "flags: expected a mapping"),
        ("flags: {lr: [0.1, 0.2]}\ngrid: {random_state: 1}", "put it into grid"),
        ("gird: {random_state: 1}", "gird: not one of the keys title, config, flags, grid; did you mean grid?"),
        ("grid: {random_state: 0}", "random_state 0 draws another seed"),
        ("grid: {overwrite: 1}", "overwrite: a sweep leaves finished runs as they are"),
        ("config: nowhere.yaml\ngrid: {lr: 0.1}", "nowhere.yaml: cannot be read"),
        ("grid: {random_state_pretrain: 0}", "random_state_pretrain 0 draws another seed"),
        ("grid: {lr: 0.1}\ngrid: {lr: 0.2}", "grid stands twice"),
        ("grid: {lr: 0.1, lr: 0.2}", "lr stands twice"),
        ("grid: {lr: true}", "--lr true: expected a number"),
        ("grid: {root: null}", "--root None: expected a word"),
        ("grid: {root: {a: 1}}", "--root {'a': '1'}: expected a word"),
        ("just words", "expected a mapping"),
        ("grid: {a: b: c}", "cannot be read as YAML"),
        ("grid: !!python/object/apply:os.system [ls]", "cannot be read as YAML"),
    ],
)
def test_wrong_files_are_refused_with_file_and_cause(written, text, words):
    file = written(text)
    with pytest.raises(FlagError) as refused:
        read_sweep(file, {})
    assert words in str(refused.value)
    assert str(file.parent) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_sweep_has_one_results_root_and_parents_that_exist(tmp_path):
    with pytest.raises(FlagError, match="one, not a, b"):
        plan(expand({"results_root": ["a", "b"]}))
    with pytest.raises(FlagError, match="nowhere: does not exist"):
        plan(expand({"mode": "lottery", "pretrain_model_path": str(tmp_path / "nowhere")}))


@pytest.mark.parametrize("file", SWEEPS, ids=lambda path: str(path.relative_to(ROOT / "scripts")))
def test_the_papers_sweeps_plan_and_are_headed_by_their_command(file):
    runs = plan(read_sweep(file, {}), fingerprint=lambda data: None)
    seeds = {run.config.random_state for run in runs}
    assert len(seeds) >= 3
    assert seeds == set(range(1, len(seeds) + 1))
    trained = [run for run in runs if run.config.mode == "dense"]
    dense = collections.Counter((run.group, run.config.data.augment, run.config.train.n_epochs) for run in trained)
    assert set(dense.values()) == {len(seeds)}
    assert f"python experiment.py sweep {file.relative_to(ROOT)}" in file.read_text()


@pytest.mark.parametrize("scale", ["", "small/"])
def test_fair_budgets_share_the_dense_parents_of_figure_1_and_reach_their_total(scale):
    def planned(name: str) -> list[PlannedRun]:
        return plan(read_sweep(ROOT / f"scripts/paper/{scale}{name}.yaml", {}), fingerprint=lambda data: None)

    fair = planned("fair_budget")
    assert {r.name for r in planned("figure1") if r.config.mode == "dense"} == {
        r.name for r in fair if r.config.mode == "dense"
    }
    dense, finetuned = (next(r for r in fair if r.config.mode == m).config.train.n_epochs for m in ("dense", "sparse-finetune"))
    for mode in ("sparse-scratch", "lottery"):
        assert {r.config.train.n_epochs for r in fair if r.config.mode == mode} == {finetuned, dense + finetuned}


def test_a_job_is_a_command_that_anyone_can_repeat(tmp_path):
    (run,) = plan([unflatten(RunConfig, {"random_state": 3, "results_root": str(tmp_path)})])
    job = Job(run.name, tuple(run.flags()), run.folder, tmp_path / "log")
    assert job.command[1:] == [str(ROOT / "run.py"), "--random_state", "3", "--results_root", str(tmp_path)]
    assert set(all_flags(RunConfig)) >= {word.removeprefix("--") for word in job.flags[::2]}

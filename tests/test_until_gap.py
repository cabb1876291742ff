"""How many seeds a gap takes: `experiment.py power`, and sweeps that add seeds until it is decided."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy
import pytest

import experiment
from helper.schema.config import FlagError, digest, flatten, replace
from helper.system.versions import ROOT
from optim.config import RunConfig
from study import decisions
from study.anytime import NONE, OPEN, POSITIVE, look
from study.decisions import Decision, read_decisions, write_decision
from study.sweeping import comparisons
from study.sweeping import until_decided as module
from study.sweeping.comparisons import compared, examples_of, value_of
from study.sweeping.power import paired
from study.sweeping.sweep_options import SweepConfig
from study.sweeping.until_decided import at_most, until_decided
from study.t_power import units_needed
from tests.outcome import outcome

BOTH = ("sparse-finetune", "sparse-scratch")


def configs_of(**flags: list) -> list[RunConfig]:
    """One for each combination of flags' values, the last varying fastest."""
    from study.sweeping.plan import expand

    return expand({"figures": 0, **flags})


# -------------------------------------------------------------------------------------------------- what is compared


def test_two_settings_are_a_comparison_whatever_they_differ_in():
    runs = [*configs_of(mode=BOTH[0], random_state=[3, 1]), *configs_of(mode=BOTH[1], n_epochs=60, random_state=[1, 3, 5])]
    (comparison,) = compared(runs, "mode")
    assert comparison.seeds == [3, 1]
    assert comparison.title == "mode sparse-finetune, n_epochs 30 less mode sparse-scratch, n_epochs 60"
    assert [run.random_state for run in comparison.with_more(2).runs()] == [3, 1, 6, 7, 1, 3, 5, 6, 7]
    assert comparison.with_more(2).seeds == [3, 1, 6, 7]
    assert {run.train.n_epochs for run in comparison.with_more(2).sides[1].values()} == {60}


@pytest.mark.parametrize(
    "flags", [{"random_state": 9}, {"random_state": [9], "n_epochs_pretrain": 7}, {"random_state": [4, 9]}]
)
def test_seeds_that_are_added_have_a_dense_parent_of_their_own(flags):
    """Also where the first one's was named: by the seed that it would have had anyway."""
    runs = [replace(run, random_state_pretrain=run.random_state) for run in configs_of(mode=list(BOTH), **flags)]
    more = compared(runs, "mode")[0].with_more(2).runs()
    assert {run.random_state for run in more} >= {9, 10, 11}
    assert all(run.dense_parent().random_state == run.random_state for run in more)
    assert len({digest(flatten(run.dense_parent())) for run in more}) == len(more) // 2


def test_more_settings_are_compared_where_they_differ_in_one_flag_alone():
    runs = configs_of(mode=list(BOTH), prune_ratio=[0.8, 0.9], random_state=[1, 2])
    by_mode, by_ratio = compared(runs, "mode"), compared(runs, "prune_ratio")
    assert [c.title for c in by_mode] == [
        f"prune_ratio {ratio}: mode sparse-finetune less mode sparse-scratch" for ratio in (0.8, 0.9)
    ]
    assert [c.title for c in by_ratio] == [f"mode {mode}: prune_ratio 0.8 less prune_ratio 0.9" for mode in BOTH]
    assert len({c.key("acc_test") for c in (*by_mode, *by_ratio)} | {by_mode[0].key("acc_train")}) == 5


@pytest.mark.parametrize(
    ("flags", "between", "words"),
    [
        ({"random_state": [1, 2]}, "mode", "there is one"),
        ({"mode": [*BOTH, "dense"]}, "mode", "3 settings differ in it alone"),
        ({"mode": list(BOTH)}, "figures", "decides on the weights"),
        ({"mode": list(BOTH)}, "moed", "decides on the weights"),
        ({"mode": list(BOTH), "random_state": [1, 2], "random_state_pretrain": 9}, "mode", "--random_state_pretrain"),
        ({"mode": list(BOTH), "pretrain_model_path": "x.pt"}, "mode", "--pretrain_model_path"),
    ],
)
def test_what_cannot_be_compared_is_said_in_one_line(flags, between, words):
    with pytest.raises(FlagError, match=words):
        compared(configs_of(**flags), between)


# ------------------------------------------------------------------------------------------------- seeds are added


class Runs:
    """Stands in for training: notes what is run, and gives each run an accuracy by its mode and seed."""

    def __init__(self, accuracy) -> None:
        self.accuracy, self.calls = accuracy, []

    def run_all(self, configs) -> int:
        self.calls.append([(config.mode, config.prune.prune_ratio, config.random_state) for config in configs])
        return 0


@pytest.fixture
def sequential(tmp_path, monkeypatch):
    """sequential(configs, accuracy(config), **options) -> (calls, decisions)."""

    def call(configs, accuracy, **options):
        runs = Runs(accuracy)
        monkeypatch.setattr(module, "run_folder", lambda config, _: config)
        monkeypatch.setattr(comparisons, "value_of", lambda config, name: accuracy(config))
        monkeypatch.setattr(comparisons, "examples_of", lambda config, name: 1000)
        config = SweepConfig(**{"until_gap": "acc_test:0.01", "max_seeds": 40} | options)
        assert until_decided(config, configs, runs.run_all) == 0
        found, damaged = read_decisions(tmp_path)
        assert damaged == []
        return runs.calls, found

    return call


def pairs_of(tmp_path, seeds, **flags):
    return configs_of(mode=list(BOTH), random_state=seeds, results_root=str(tmp_path), **flags)


def noise(seed: int, mode: str, scale: float) -> float:
    return float(numpy.random.default_rng([seed, mode == BOTH[0]]).normal() * scale)


def test_seeds_are_added_in_pairs_until_the_interval_excludes_zero(tmp_path, sequential):
    def accuracy(config):
        return 0.7 + 0.02 * (config.mode == BOTH[0]) + noise(config.random_state, config.mode, 0.004)

    calls, (decision,) = sequential(pairs_of(tmp_path, [1, 2]), accuracy)
    seeds = list(range(1, len(calls) + 2))
    assert decision.seeds == seeds
    assert decision.verdict == POSITIVE
    assert 3 < len(seeds) < 40
    assert [sorted({seed for *_, seed in call}) for call in calls] == [seeds[: n + 2] for n in range(len(calls))]
    assert all(len(call) == 2 * len({seed for *_, seed in call}) for call in calls)
    finetune, scratch = (configs_of(mode=mode, random_state=seeds) for mode in BOTH)
    differences = [accuracy(a) - accuracy(b) for a, b in zip(finetune, scratch, strict=True)]
    found = look(differences, least=0.001)
    assert (decision.low, decision.high) == (found.low, found.high)
    assert look(differences[:-1], least=0.001).decision(0.01) == OPEN
    assert decision.level == 0.95


def test_no_gap_is_a_decision_too(tmp_path, sequential):
    _, (decision,) = sequential(
        pairs_of(tmp_path, [1, 2, 3]), lambda config: 0.7 + noise(config.random_state, config.mode, 0.003)
    )
    assert decision.verdict == NONE
    assert -0.01 < decision.low < decision.high < 0.01


def test_what_stays_open_ends_with_as_many_seeds_as_there_may_be_and_jobs_are_kept_busy(tmp_path, sequential):
    calls, (decision,) = sequential(
        pairs_of(tmp_path, [5]), lambda config: 0.7 + noise(config.random_state, config.mode, 0.1), max_seeds=8, jobs=6
    )
    assert decision.verdict == OPEN
    assert [len(call) // 2 for call in calls] == [1, 4, 7, 8]
    assert decision.seeds == list(range(5, 13))


def test_as_many_seeds_are_added_as_are_asked_for_and_no_more_than_there_may_be(tmp_path, sequential):
    calls, _ = sequential(
        pairs_of(tmp_path, [5]), lambda config: 0.7 + noise(config.random_state, config.mode, 0.1),
        max_seeds=8, jobs=6, seeds_at_once=2,
    )  # fmt: skip
    assert [len(call) // 2 for call in calls] == [1, 3, 5, 7, 8]


def test_each_comparison_goes_on_by_itself_and_all_intervals_hold_together(tmp_path, sequential):
    def accuracy(config):
        ahead = 0.05 * (config.mode == BOTH[0] and config.prune.prune_ratio == 0.8)
        return 0.7 + ahead + noise(config.random_state, config.mode, 0.02)

    calls, found = sequential(pairs_of(tmp_path, [1, 2], prune_ratio=[0.8, 0.9]), accuracy, max_seeds=20)
    clear, unclear = found
    assert (clear.verdict, unclear.verdict) == (POSITIVE, OPEN)
    assert len(clear.seeds) < len(unclear.seeds) == 20
    assert {ratio for _, ratio, seed in calls[-1] if seed > len(clear.seeds)} == {0.9}
    assert clear.level == unclear.level == 0.975


def test_a_sweep_that_begins_again_takes_the_same_steps(tmp_path, sequential):
    def accuracy(config):
        return 0.7 + 0.02 * (config.mode == BOTH[0]) + noise(config.random_state, config.mode, 0.004)

    first = sequential(pairs_of(tmp_path, [1, 2]), accuracy)
    assert sequential(pairs_of(tmp_path, [1, 2]), accuracy) == first


def test_a_sweep_that_fails_adds_nothing(tmp_path):
    config = SweepConfig(until_gap="acc_test:0.01", max_seeds=9)
    calls = []
    assert until_decided(config, pairs_of(tmp_path, [1, 2]), lambda configs: calls.append(len(configs)) or 75) == 75
    assert calls == [4]
    assert not (tmp_path / "sweeps").exists()


def test_a_dry_run_prices_as_many_seeds_as_there_may_be(tmp_path):
    runs = at_most(SweepConfig(until_gap="acc_test:0.01", max_seeds=9), pairs_of(tmp_path, [1, 2]))
    assert sorted(config.random_state for config in runs) == sorted([*range(1, 10)] * 2)


OPEN_END = ("--until_gap", "acc_test:0.01", "--max_seeds", 5)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--until_gap", "acc_test:0.01"), "--max_seeds need each other"),
        (("--max_seeds", 5), "need each other"),
        (("--until_gap", "acc_test", "--max_seeds", 5), "such as acc_test:0.01"),
        (("--until_gap", "acc_test:0", "--max_seeds", 5), "such as acc_test:0.01"),
        (("--until_gap", "acc_test:nan", "--max_seeds", 5), "such as acc_test:0.01"),
        (("--until_gap", "acc_test:0.01", "--max_seeds", 2), "there are 3 seeds already"),
        (("--until_gap", "acc_test:0.01", "--max_seeds", 5, "--between", "lr"), "--between lr"),
        ((*OPEN_END, "--executor", "slurm", "--slurm_time", 9, "--watch", 0), "needs --watch 1"),
        ((*OPEN_END, "--seeds_at_once", 0), "--seeds_at_once 0"),
        (("--seeds_at_once", 2), "needs --until_gap"),
    ],
)
def test_wrong_flags_are_refused_in_one_line(tmp_path, flags, words):
    file = tmp_path / "sweep.yaml"
    file.write_text("grid: {mode: [sparse-finetune, sparse-scratch], prune_ratio: [0.8, 0.9], random_state: [1, 2, 3]}")
    found = outcome(experiment.main, "sweep", file, "--results_root", tmp_path / "results", *flags)
    assert (found.code, words in found.line) == (2, True), found.line


# --------------------------------------------------------------------------------------------------- with real runs

TINY = (
    "figures: 0, n_epochs: 2, save_snr: 0, save_fisher: 0, lr_milestones: 1, hidden_dims: 8, limit_train: 200, limit_test: 100"
)
GRID = "{mode: [sparse-finetune, sparse-scratch], prune_ratio: 0.5, random_state: [1, 2]}"
SWEEP = f"title: Told apart\nflags: {{{TINY}}}\ngrid: {GRID}"


def command(tmp_path, *flags: object) -> list[str]:
    file = tmp_path / "sweep.yaml"
    file.write_text(SWEEP)
    return ["sweep", str(file), "--results_root", str(tmp_path / "results"), "--jobs", "2", *map(str, flags)]


def test_a_sweep_adds_seeds_reports_them_and_goes_on_after_a_stop(tmp_path):
    goal = ("--until_gap", "acc_train:0.02", "--max_seeds", 5)
    words = command(tmp_path, *goal)
    process = subprocess.Popen([sys.executable, ROOT / "experiment.py", *words], stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while len(list(tmp_path.glob("results/*/*/sparse-*/*-s3-*/summary.json"))) < 1 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    assert process.returncode in (0, 75)  # 0 where it was decided meanwhile
    found = outcome(experiment.main, *words)
    assert found.code == 0
    (decision,), damaged = read_decisions(tmp_path / "results")
    assert damaged == []
    assert len(decision.seeds) == 5 or decision.verdict != OPEN
    folders = [list(tmp_path.glob(f"results/*/*/{mode}/*")) for mode in BOTH]
    first, second = (accuracies(part, "acc_train") for part in folders)
    assert decision.differences == pytest.approx([first[seed] - second[seed] for seed in decision.seeds])
    assert f"{decision.title}, acc_train: {len(decision.seeds)} seeds" in found.out
    assert outcome(experiment.main, "report", tmp_path / "results").code == 0
    page = (tmp_path / "results/report/index.html").read_text()
    assert "Seeds added until a gap decides" in page
    assert decision.title in page
    assert decision.words in page
    # what these runs say of the seeds that a gap takes
    runs = [path for part in folders for path in part]
    found = outcome(experiment.main, "power", *runs, "--gap", 0.05, "--value", "acc_test")
    assert found.code == 0, found.err
    first, second = (accuracies(part, "acc_test") for part in folders)
    sd = numpy.std([first[seed] - second[seed] for seed in first], ddof=1)
    assert f"by {units_needed(0.05 / max(sd, 0.01)):,} seeds" in found.out
    assert "there are 100" in found.out


def accuracies(folders: list[Path], name: str) -> dict[int, float]:
    """{seed: a number of the summary} of runs."""
    found = {}
    for path in folders:
        seed = re.search(r"-s(\d+)-", path.name).group(1)
        found[int(seed)] = json.loads((path / "summary.json").read_text())[name]
    return found


def test_values_are_those_of_the_summary_and_unknown_ones_are_named(train):
    from optim.folder import RunFolder

    folder = RunFolder(train("--figures", 0, "--n_epochs", 1, "--lr_milestones", 1, "--limit_train", 300, "--save_snr", 0))
    summary = folder.read_summary()
    assert value_of(folder, "acc_test") == summary["acc_test"]
    assert value_of(folder, "fisher") == summary["metrics"]["fisher"]["value"]
    assert (examples_of(folder, "acc_train"), examples_of(folder, "fisher")) == (300, None)
    with pytest.raises(FlagError, match=r"acc_tset: .* there are acc_test"):
        value_of(folder, "acc_tset")


# ------------------------------------------------------------------------------------------------------------ power


class Folder:
    """Stands in for a run's folder: what a summary says."""

    def __init__(self, value: float) -> None:
        self.path, self.summary = "made up", {"acc_test": value, "metrics": {}, "examples": {"test": 500}}

    def read_summary(self) -> dict:
        return self.summary


def test_the_spread_is_that_of_paired_differences_and_at_least_one_example():
    runs = pairs_of(Path("none"), [1, 2, 3])
    values = {(mode, seed): 0.5 + 0.1 * seed + 0.02 * (mode == BOTH[0]) for mode in BOTH for seed in (1, 2, 3)}
    folders = {config: Folder(values[config.mode, config.random_state]) for config in runs}
    (comparison,) = compared(folders, "mode")
    found = paired(comparison, folders, "acc_test")
    assert found.differences == pytest.approx([0.02] * 3)
    assert found.sd == 1 / 500  # seeds differ by .1, their differences by nothing
    assert found.means == pytest.approx((0.72, 0.7))
    with pytest.raises(FlagError, match="two that both settings have"):
        paired(compared(pairs_of(Path("none"), [1]), "mode")[0], folders, "acc_test")


def test_power_refuses_what_is_no_finished_run(tmp_path):
    assert "is no folder of a finished run" in outcome(experiment.main, "power", tmp_path).line


def test_a_damaged_decision_is_left_out_by_name(tmp_path):
    good = Decision("a less b", "acc_test", 0.01, 0.95, [1, 2], [0.1, 0.2], 0.15, None, None, OPEN, 9)
    write_decision(tmp_path, "good", good)
    folder = tmp_path / decisions.SWEEPS / decisions.FOLDER
    text = (folder / "good.json").read_text()
    for name, content in {
        "half": text[:40], "type": text.replace("0.15", '"0.15"'), "more": text.replace('"most"', '"mots"'), "list": "[1]",
        "verdict": text.replace("open", "shut"), "infinite": text.replace("0.15", "1e999"),
        "seeds": text.replace("0.2", "0.2, 0.3"),
    }.items():  # fmt: skip
        (folder / f"{name}.json").write_text(content)
    found, damaged = read_decisions(tmp_path)
    assert found == [good]
    assert len(damaged) == 7
    assert all("the same sweep writes it again" in reason for _, reason in damaged)

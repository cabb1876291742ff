"""The report and measure commands over finished runs."""

import json
import shutil

import pandas
import pytest
from PIL import Image

import experiment
from helper.schema.config import unflatten
from optim.config import RunConfig
from scripts.made_up_runs import write_run
from study.reporting import figures_epochs
from study.reporting.collect import collect
from study.reporting.families import family_of
from study.reporting.figures_layers import figure11
from tests.edited import edit_summary, vouch


@pytest.fixture
def run_command(capsys):
    """run_command(word, ...) -> (exit code, standard output, standard error)."""

    def call(*words: object) -> tuple[int | str | None, str, str]:
        with pytest.raises(SystemExit) as stop:
            experiment.main(list(map(str, words)))
        captured = capsys.readouterr()
        return stop.value.code, captured.out, captured.err

    return call


def write_family(root, **flags) -> None:
    for seed in (1, 2, 3):
        for mode, ratio in [("dense", 0.9), *((m, r) for m in ("sparse-finetune", "sparse-scratch") for r in (0.5, 0.9))]:
            run = {"mode": mode, "prune_ratio": ratio, "random_state": seed, "results_root": str(root), **flags}
            write_run(unflatten(RunConfig, run))


def test_the_report_has_every_figure_and_table_that_the_runs_can_show(tmp_path, run_command):
    write_family(tmp_path, loader_name="digits_noisy")
    code, printed, _ = run_command("report", tmp_path, "--png", 1, "--pdf", 1)
    assert code == 0
    assert printed.splitlines()[-1] == str(tmp_path / "report/index.html")
    assert "sparse-finetune" in printed
    page = (tmp_path / "report/index.html").read_text()
    for name in ("figure 1", "training cost", "figure 3", "figure 4", "figure 5", "figure 11", "table 1", "table 2"):
        assert name in page.lower()
    assert "optimization" in page  # the regime of the made-up gap at 0.9
    pictures = sorted((tmp_path / "report/figures").glob("*.png"))
    assert len(pictures) == 6
    for path in pictures:
        assert min(Image.open(path).size) > 300
        assert path.with_suffix(".pdf").exists()
    runs = pandas.read_csv(tmp_path / "report/runs.csv")
    assert len(runs) == 15
    assert {"run", "study", "mode", "sparsity", "seed", "acc_test", "fisher", "fisher_error", "cost"} <= set(runs)
    gaps = pandas.read_csv(tmp_path / "report/gaps.csv")
    assert gaps["gap"].tolist() == ["training", "test"] * 2
    assert (gaps["p"] <= gaps["p_holm"]).all()
    assert gaps["images_show_from"].isna().tolist() == [True, False] * 2  # training images are all there are
    assert "t, 3 seeds" in set(pandas.read_csv(tmp_path / "report/over_seeds.csv")["method"])


def test_studies_of_the_same_data_and_network_are_told_apart_in_the_printed_table_as_on_the_page(tmp_path, run_command):
    for n_epochs in (10, 20):
        write_run(unflatten(RunConfig, {"results_root": str(tmp_path), "n_epochs": n_epochs}))
    _, printed, _ = run_command("report", tmp_path)
    heading, *rows = [line.split() for line in printed.splitlines()[:3]]
    assert heading[:4] == ["data", "network", "study", "series"]
    studies = [row[2] for row in rows]
    assert len(set(studies)) == 2
    page = (tmp_path / "report/index.html").read_text()
    assert all(f"digits, mlp-128-64 ({study})" in page for study in studies)


@pytest.mark.parametrize("flags", [{"net_name": "mnist_lenet"}, {"loader_name": "digits_noisy"}, {"random_state": 7}])
def test_without_such_studies_the_table_has_no_column_for_them(tmp_path, run_command, flags):
    for more in ({}, flags):
        write_run(unflatten(RunConfig, {"results_root": str(tmp_path), **more}))
    _, printed, _ = run_command("report", tmp_path)
    assert printed.splitlines()[0].split()[:4] == ["data", "network", "series", "sparsity"]


def test_the_margin_of_the_report_decides_which_gap_counts(tmp_path, run_command):
    write_family(tmp_path)
    regimes = []
    for margin in (0.01, 0.3):
        assert run_command("report", tmp_path, "--margin", margin)[0] == 0
        assert f"± {margin:g} (two one-sided tests" in (tmp_path / "report/index.html").read_text()
        regimes.append(pandas.read_csv(tmp_path / "report/gaps.csv")["regime"].unique().tolist())
    assert regimes == [["optimization"], ["no gap"]]
    assert "--margin -1" in run_command("report", tmp_path, "--margin", -1)[2]


def test_a_report_of_sparse_runs_that_were_not_paired_says_why(tmp_path, run_command):
    write_family(tmp_path)
    for path in tmp_path.glob("*/*/sparse-scratch/*-s2-*"):
        shutil.rmtree(path)
    write_family(tmp_path / "other", prune_last=1, select="test")
    assert run_command("report", tmp_path)[0] == 0
    page = (tmp_path / "report/index.html").read_text()
    assert "What is not compared" in page
    assert "random_state 1 instead of 2" in page
    assert "†" not in page
    assert run_command("report", tmp_path / "other")[0] == 0
    assert "biases that accuracy upwards" in (tmp_path / "other/report/index.html").read_text()


def mark_unreliable(path, epochs) -> None:
    """Mark a run's totals of some epochs in metrics.csv and summary.json, and know of the others that they are reliable."""
    table = pandas.read_csv(path / "metrics.csv")
    table["reliable"] = (~table["epoch"].isin(epochs)).astype(int).where(table["layer"] == "all").astype("Int64")
    table.to_csv(path / "metrics.csv", index=False)
    edit_summary(
        path, lambda summary: summary["metrics"]["fisher"].update(reliable=float(summary["epoch_selected"] not in epochs))
    )
    vouch(path)


def test_unreliable_measurements_are_marked_and_counted_wherever_they_stand(tmp_path, run_command):
    write_family(tmp_path, loader_name="digits_noisy")
    assert run_command("report", tmp_path)[0] == 0
    assert "‡" not in (tmp_path / "report/index.html").read_text()  # tables from before do not tell
    for path in tmp_path.glob("*/*/*/*/metrics.csv"):
        mark_unreliable(path.parent, [])
    code, printed, _ = run_command("report", tmp_path)
    assert (code, printed.count("None of 30 measurements")) == (0, 1)  # 15 runs, at the start and at the end
    assert "may miss the true value" not in (tmp_path / "report/index.html").read_text()
    (path,) = tmp_path.glob("*/*/sparse-scratch/l1-0.9-*-s2-*/metrics.csv")
    mark_unreliable(path.parent, [0, 20, 30])
    code, printed, _ = run_command("report", tmp_path)
    assert (code, printed.count("2 of 30 measurements")) == (0, 1)
    assert "may miss the true value" in printed
    page = (tmp_path / "report/index.html").read_text()
    assert page.count("2 of 30 measurements") == 2  # at the head and in the study
    for id, words in {
        "figure-1": "1 of 15 values of Tr F is marked ‡", "figure-3": "3 of 60 values of Tr F are marked ‡",
        "figure-5": "6 of 72 values of Tr F are marked ‡", "table-1-sharpness": " ‡</td>", "table-2": " ‡</td>",
    }.items():  # fmt: skip
        part = page[page.index(f'<figure id="{id}">') :].split("</figure>")[0]
        assert words in part, id
        assert part.count("may miss the true value") == 1, id
    runs = pandas.read_csv(tmp_path / "report/runs.csv").set_index("run")
    name = path.parent.relative_to(tmp_path).as_posix()
    for column in ("fisher_reliable", "fisher_initial_reliable"):
        assert runs.index[runs[column] == 0].tolist() == [name]
    rows = json.loads(page.split('class="run-data">')[1].split("</script>")[0])["runs"]
    cells = next(row["cells"] for row in rows if row["name"] == name)
    assert [key for text, key in cells if text.endswith(" ‡")] == [pytest.approx(runs.loc[name, "fisher"], rel=1e-3)]
    table = pandas.read_csv(tmp_path / "report/over_seeds.csv").query("quantity == 'fisher' and unreliable == 1")
    assert table[["mode", "sparsity"]].values.tolist() == [["sparse-scratch", 0.9]]


def test_comparisons_of_runs_that_test_accuracy_chose_say_so(tmp_path, run_command):
    write_family(tmp_path, select="test")
    names = [record.name for record in collect(tmp_path).records[-2:]]
    folder = tmp_path / "comparisons/disagree_1_2"
    folder.mkdir(parents=True)
    result = {"kind": "disagree", "title": "A against B", "runs": names, "figures": [], "numbers": []}
    (folder / "result.json").write_text(json.dumps(result))
    code, printed, _ = run_command("report", tmp_path)
    assert code == 0
    assert printed.count("biases that accuracy upwards") == 1
    page = (tmp_path / "report/index.html").read_text()
    assert "biases that accuracy upwards" in page[page.index("<h2>A against B") :].split("</section>")[0]


def test_a_report_of_clean_runs_leaves_nothing_of_an_earlier_one(tmp_path, run_command):
    write_family(tmp_path, loader_name="digits_noisy")
    run_command("report", tmp_path, "--png", 1)
    before = set((tmp_path / "report/figures").iterdir())
    shutil.rmtree(tmp_path / "digits_noisy")
    write_family(tmp_path)
    run_command("report", tmp_path, "--png", 1)
    after = set((tmp_path / "report/figures").iterdir())
    assert after
    assert not before & after


def test_a_report_over_no_runs_is_refused_in_one_line(tmp_path, run_command):
    code, _, _ = run_command("report", tmp_path)
    assert "no finished run under" in code
    code, _, _ = run_command("report", tmp_path / "nowhere")
    assert "no finished run under" in code


def test_a_report_that_leaves_out_every_run_says_why(tmp_path, run_command):
    folder = write_run(RunConfig(results_root=str(tmp_path)))
    folder.config.write_text("channels: 8\n")
    write_run(RunConfig(results_root=str(tmp_path), random_state=2)).summary.unlink()
    code, _, errors = run_command("report", tmp_path)
    assert "no finished run under" in code
    unfinished, foreign = errors.splitlines()
    assert "has --channels, which no part of this program knows" in foreign
    assert unfinished.endswith("not finished")


def test_names_with_markup_are_text_in_the_page(tmp_path, run_command):
    write_family(tmp_path)
    (path,) = tmp_path.glob("*/*/dense/*-s1-*")
    path.rename(path.with_name("<img src=x onerror=alert(1)>"))
    other = next(tmp_path.glob("*/*/dense/*-s2-*"))
    edit_summary(other, lambda summary: summary["identity"].update(lr="</script><script>alert(1)</script>"))
    assert run_command("report", tmp_path)[0] == 0
    page = (tmp_path / "report/index.html").read_text()
    assert "<img src=x" not in page
    assert "<script>alert" not in page


def test_comparisons_are_in_the_report_and_damaged_ones_are_listed(tmp_path, run_command):
    write_family(tmp_path)
    good, bad = tmp_path / "comparisons/disagree_1_2", tmp_path / "comparisons/disagree_3_4"
    for folder in (good, bad):
        folder.mkdir(parents=True)
        Image.new("RGB", (30, 20)).save(folder / "a.png")
    figure = {"id": "figure 9", "file": "a.png", "title": "Who disagrees", "caption": "counts"}
    result = {"kind": "disagree", "title": "A against B", "runs": ["x", "y"], "figures": [figure], "numbers": [{"n": 3}]}
    (good / "result.json").write_text(json.dumps(result))
    (bad / "result.json").write_text('{"title": 1')
    for name, change in {"gone": {"figures": [figure | {"file": "b.png"}]}, "words": {"numbers": ["ab"]}}.items():
        (tmp_path / "comparisons" / name).mkdir()
        (tmp_path / "comparisons" / name / "result.json").write_text(json.dumps(result | change))
    assert run_command("report", tmp_path)[0] == 0
    page = (tmp_path / "report/index.html").read_text()
    assert "A against B" in page
    assert "Who disagrees" in page
    for name in ("disagree_3_4", "gone", "words"):
        assert f"{name}/result.json" in page


def test_figure_11_shows_the_lowest_and_the_highest_sparsity(tmp_path):
    write_family(tmp_path)
    _, shown = figure11(collect(tmp_path).records)
    chosen = [(r.summary["sparsity_requested"], r.mode, r.seed) for r in shown]
    assert chosen == [
        (0.5, "sparse-finetune", 1),
        (0.5, "sparse-scratch", 1),
        (0.9, "sparse-finetune", 1),
        (0.9, "sparse-scratch", 1),
    ]


def test_the_curve_of_tr_f_is_of_one_series_and_one_way_of_measuring(tmp_path):
    write_family(tmp_path)
    longer = {"mode": "sparse-scratch", "prune_ratio": 0.9, "n_epochs": 60, "n_epochs_pretrain": 30}
    write_run(unflatten(RunConfig, {**longer, "random_state": 1, "results_root": str(tmp_path)}))
    (path,) = tmp_path.glob("*/*/sparse-scratch/l1-0.9-*-e30-s2-*/metrics.csv")
    path.write_text(path.read_text().replace("layers,", "all,"))
    vouch(path.parent)
    records = collect(tmp_path).records
    line = figures_epochs.fisher_lines(records, "all")[family_of({"mode": "sparse-scratch"}), 0.9].curve
    alike = [r for r in records if r.mode == "sparse-scratch" and r.flags["prune_ratio"] == 0.9 and r.flags["n_epochs"] == 30]
    values = [
        r.metrics.query("metric == 'fisher' and layer == 'all' and epoch == 10")["value"].item() for r in alike if r.seed != 2
    ]
    assert line.loc[line["epoch"] == 10, "mean"].item() == pytest.approx((values[0] * values[1]) ** 0.5)
    assert line["epoch"].max() == 30


def test_tr_f_that_is_not_finite_does_not_end_the_report(tmp_path, run_command):
    write_family(tmp_path)
    for path in tmp_path.glob("*/*/sparse-scratch/l1-0.9-*-s1-*/metrics.csv"):
        rows = pandas.read_csv(path)
        rows.loc[rows["epoch"] == 20, "value"] = float("inf")
        rows.to_csv(path, index=False)
        vouch(path.parent)
    assert run_command("report", tmp_path)[0] == 0


def test_unknown_commands_are_refused_with_the_near_match(run_command):
    code, _, err = run_command("reprot")
    assert code == 2
    assert "did you mean report?" in err


# ------------------------------------------------------------------------------------------------------ measure

QUICK = ("--figures", 0, "--n_epochs", 2, "-lm", 1, "-ss", 0, "-sf", 0, "-hd", "8")


def test_saved_states_are_measured_once_for_each_way(train, run_command, capsys):
    folder = train(*QUICK)
    measure = (
        "measure",
        folder,
        "--metrics",
        "fisher,snr,spectrum",
        "--metric_rtol",
        0.2,
        "--spectrum_k",
        2,
        "--spectrum_steps",
        3,
    )
    code, printed, _ = run_command(*measure, "--epochs", "all")
    assert (code, "measured" in printed) == (0, True)
    rows = pandas.read_csv(folder / "metrics.csv")
    assert rows.loc[rows["layer"] == "all", "epoch"].tolist() == [0, 1, 2]
    assert sorted(pandas.read_csv(folder / "snr.csv")["epoch"].unique()) == [0, 1, 2]
    assert sorted(path.stem for path in folder.glob("spectra/*.npz")) == ["epoch_0", "epoch_1", "epoch_2"]
    assert "fisher" in json.loads((folder / "summary.json").read_text())["metrics"]
    before = (folder / "metrics.csv").read_bytes()
    code, printed, _ = run_command(*measure, "--epochs", "all")
    assert (code, "everything was there" in printed) == (0, True)
    assert (folder / "metrics.csv").read_bytes() == before
    run_command(*measure, "--epochs", "last", "--metric_params", "weights")
    rows = pandas.read_csv(folder / "metrics.csv")
    assert rows.loc[(rows["layer"] == "all") & (rows["params"] == "weights"), "epoch"].tolist() == [2]


def test_a_measurement_after_the_fact_is_that_of_the_run_itself(train, run_command, tmp_path):
    during = train(*QUICK, "--save_jacobian", 1, root=tmp_path / "a")
    after = train(*QUICK, root=tmp_path / "b")
    run_command("measure", after, "--metrics", "jacobian", "--epochs", "0")
    run_command("measure", after, "--metrics", "jacobian")
    tables = [pandas.read_csv(folder / "metrics.csv").drop(columns="seconds") for folder in (during, after)]
    pandas.testing.assert_frame_equal(*tables)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--metrics", "fihser"), "did you mean fisher?"),
        (("--epochs", "some"), "expected all, selected, last, or epochs"),
        (("--save_fisher", 1), "say it with --metrics fisher"),
        (("--snr_mode", "online"), "only the SNR at fixed weights"),
        (("--metric_rtol", "0.1,0.2"), "one value is measured at a time"),
        (("--metric_rtol", -1), "--metric_rtol -1"),
    ],
)
def test_wrong_flags_of_measure_are_refused_in_one_line(train, run_command, words, message):
    code, _, err = run_command("measure", train(*QUICK), *words)
    assert code == 2
    assert message in err.splitlines()[-1]


def test_measure_names_states_that_are_not_kept_and_folders_that_are_no_runs(train, run_command, tmp_path):
    folder = train(*QUICK)
    with pytest.raises(RuntimeError, match="keeps no state of epoch 7; there are 0, 1, 2"):
        experiment.main(["measure", str(folder), "--epochs", "7"])
    with pytest.raises(RuntimeError, match="is no run folder"):
        experiment.main(["measure", str(tmp_path)])


def test_measure_refuses_other_data_than_the_run_was_trained_on(train, tmp_path, files):
    folder = train(*QUICK, "--loader_name", "toy", "--root", files, "--limit_train", 100)
    with pytest.raises(RuntimeError, match="was trained on other data files"):
        experiment.main(["measure", str(folder), "--root", str(tmp_path)])

"""What trackers do beside a run: TensorBoard's files, read back with its own readers, and a tracker that is added here."""

import io
import json
import signal
import subprocess
import sys
import types
from pathlib import Path

import numpy
import pytest
import yaml
from PIL import Image
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.hparams import api_pb2, list_session_groups, metadata
from tensorboard.plugins.hparams.backend_context import Context

import experiment
import helper.tables
import optim.trackers.main
import optim.trackers.tensorboard
from helper.command_line.parsing import parse
from helper.schema.config import unflatten
from helper.system.signals import Interrupted
from helper.system.versions import ROOT
from helper.tables import DamagedTable, TableReader
from optim.config import RunConfig
from optim.folder import RunFolder
from optim.identity import run_identity
from optim.main import train_run
from optim.trackers.main import TRACKERS, Trackers, TrackerSpec, join_sweep
from optim.trackers.rows import SNR_QUANTITIES, NewRows
from optim.trackers.tensorboard import TensorBoard
from study.sweeping.sweep import SweepConfig
from tests.conftest import shell
from tests.lines_tracker import Lines
from tests.outcome import outcome
from tests.stops import StopsInSecondEpoch
from tests.test_run import interrupt, rows

TRACKED = ("--tracker", "tensorboard")
SHORT = ("--figures", 0, "--n_epochs", 2, "--save_snr", 0, "--save_fisher", 0)
ALL = {"scalars": 0, "images": 0}  # readers keep a sample otherwise


def read(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder / "tensorboard"), size_guidance=ALL).Reload()


def points(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """{tag: [(step, value)]} in the order of the files."""
    events = read(folder)
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def history_points(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What history.csv holds, in the form and to the precision of `points`."""
    table = rows(folder, "history")
    columns = {f"history/{name}": [(row["epoch"], row[name]) for row in table if row[name]] for name in table[0]}
    rounded = {tag: [(int(epoch), float(numpy.float32(cell))) for epoch, cell in cells] for tag, cells in columns.items()}
    return {tag: cells for tag, cells in rounded.items() if cells and tag != "history/epoch"}


def of_history(found: dict[str, list[tuple[int, float]]]) -> dict[str, list[tuple[int, float]]]:
    return {tag: cells for tag, cells in found.items() if tag.startswith("history/")}


@pytest.fixture(scope="module")
def noisy(tmp_path_factory) -> Path:
    """A finished run with everything that tables and figures can hold."""
    flags = {
        "results_root": str(tmp_path_factory.mktemp("noisy")), "tracker": "tensorboard", "loader_name": "digits_noisy",
        "n_epochs": 4, "val_size": 0.2, "select": "val", "metric_every": 2, "save_jacobian": 1,
    }  # fmt: skip
    return train_run(unflatten(RunConfig, flags))


# ----------------------------------------------------------------------------------------------------- what is written


def test_every_number_of_history_is_a_scalar_of_its_epoch(noisy):
    assert of_history(points(noisy)) == history_points(noisy)
    assert {"history/acc_memorized", "history/loss_noisy", "history/acc_val", "history/seconds"} <= set(points(noisy))


def test_every_layer_of_snr_is_a_scalar(noisy):
    found = points(noisy)
    table = rows(noisy, "snr")
    for name in SNR_QUANTITIES:
        layers = {tag.removeprefix(f"{name}/fixed/") for tag in found if tag.startswith(f"{name}/")}
        assert layers == {row["layer"] for row in table}
        for layer in layers:
            expected = [(int(row["epoch"]), float(numpy.float32(row[name]))) for row in table if row["layer"] == layer]
            assert found[f"{name}/fixed/{layer}"] == expected


def test_every_measurement_is_a_scalar_with_its_error(noisy):
    found = points(noisy)
    total = "fisher/train/mislabelled/layers/spectral-fim-rtol0.05"
    layer = "fisher_by_layer/train/all/layers/spectral-fim-rtol0.05/layers.0"
    for tag, subset, name in ((total, "mislabelled", "all"), (layer, "all", "layers.0")):
        table = [
            row for row in rows(noisy, "metrics") if (row["metric"], row["subset"], row["layer"]) == ("fisher", subset, name)
        ]
        table.sort(key=lambda row: int(row["epoch"]))
        for column in ("value", "standard_error"):
            assert found[f"{tag}/{column}"] == [(int(row["epoch"]), float(numpy.float32(row[column]))) for row in table]
    written = [point for tag, cells in found.items() if tag.startswith(("fisher", "jacobian")) for point in cells]
    cells = [
        (int(row["epoch"]), float(numpy.float32(row[c]))) for row in rows(noisy, "metrics") for c in ("value", "standard_error")
    ]
    assert sorted(written) == sorted(cells)


def test_the_figures_are_png_images(noisy):
    events = read(noisy)
    assert set(events.Tags()["images"]) == {f"figures/{path.stem}" for path in (noisy / "figures").glob("*.png")}
    assert {"figures/performance", "figures/noisy_performance", "figures/metrics"} <= set(events.Tags()["images"])
    for tag in events.Tags()["images"]:
        (event,) = events.Images(tag)
        with Image.open(io.BytesIO(event.encoded_image_string)) as image:
            image.load()
            assert (image.format, image.size) == ("PNG", (event.width, event.height))


def test_settings_and_final_numbers_are_hyperparameters_and_metrics(noisy):
    content = read(noisy).PluginTagToContent("hparams")
    start = metadata.parse_session_start_info_plugin_data(content[metadata.SESSION_START_INFO_TAG])
    found = {name: value.string_value or value.number_value for name, value in start.hparams.items()}
    assert found == {name: value or 0.0 for name, value in yaml.safe_load((noisy / "config.yaml").read_text()).items()}
    end = metadata.parse_session_end_info_plugin_data(content[metadata.SESSION_END_INFO_TAG])
    assert end.status == api_pb2.STATUS_SUCCESS
    summary = json.loads((noisy / "summary.json").read_text())
    for name in ("acc_train", "acc_test", "sparsity_achieved", "parameters_active"):
        assert points(noisy)[f"final/{name}"] == [(summary["epoch_selected"], float(numpy.float32(summary[name])))]
    fisher = summary["metrics"]["fisher"]
    assert points(noisy)["final/fisher"][0][1] == numpy.float32(fisher["value"])
    assert points(noisy)["final/fisher_standard_error"][0][1] == numpy.float32(fisher["standard_error"])


def test_tensorboards_table_of_runs_has_their_flags_and_accuracies_the_parents_too(train, tmp_path):
    sparse = train("--mode", "sparse-finetune", *SHORT, *TRACKED)
    (dense,) = sparse.parents[1].glob("dense/*")
    runs = EventMultiplexer().AddRunsFromDirectory(str(tmp_path)).Reload()
    context = Context(TBContext(data_provider=MultiplexerDataProvider(runs, str(tmp_path))))
    request = api_pb2.ListSessionGroupsRequest(allowed_statuses=[api_pb2.STATUS_SUCCESS], slice_size=9)
    groups = list_session_groups.Handler(RequestContext(), context, "", request).run().session_groups
    found = {group.hparams["mode"].string_value: {m.name.tag: m.value for m in group.metric_values} for group in groups}
    for mode, folder in (("dense", dense), ("sparse-finetune", sparse)):
        assert found[mode]["final/acc_test"] == numpy.float32(rows(folder, "history")[-1]["acc_test"])


def test_wall_times_are_the_epochs_own(noisy):
    times = [event.wall_time for event in read(noisy).Scalars("history/lr")]
    seconds = [float(row["seconds"]) for row in rows(noisy, "history")]
    assert numpy.diff(times) == pytest.approx(seconds[1:], abs=1e-5)


# ------------------------------------------------------------------------------ interruptions, and what tables survive


def test_an_interrupted_run_has_every_step_once(tmp_path):
    flags = ("--figures", 0, "--n_epochs", 16, "--net_name", "mnist_lenet", "--limit_train", 500, "--lr", 0.02, *TRACKED)
    for number, n_rows in ((signal.SIGKILL, 3), (signal.SIGTERM, 8)):
        interrupt(tmp_path, number, n_rows, flags)
        (folder,) = tmp_path.glob("*/*/dense/*")
        found, table = of_history(points(folder)), history_points(folder)
        assert len(found["history/acc_test"]) >= n_rows - 1
        assert {tag: cells[: len(found[tag])] for tag, cells in table.items()} == found  # a kill may come before the last row
        assert metadata.SESSION_END_INFO_TAG not in read(folder).PluginTagToContent("hparams")
    done = shell(*flags, "--results_root", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "resuming after" in done.stderr
    assert of_history(points(folder)) == history_points(folder)
    assert all(steps_increase(cells) for cells in points(folder).values())
    assert len([file for file in (folder / "tensorboard").iterdir() if file.stat().st_size]) == 1


def steps_increase(cells: list[tuple[int, float]]) -> bool:
    steps = [step for step, _ in cells]
    return steps == sorted(set(steps))


def test_a_finished_run_gets_its_events_from_the_tables(train):
    flags = ("--n_epochs", 3, "--metric_every", 1)
    folder = train(*flags, *TRACKED)
    while_training = points(folder)
    images = read(folder).Tags()["images"]
    for file in (folder / "tensorboard").iterdir():
        file.unlink()
    train(*flags)
    assert not list((folder / "tensorboard").iterdir())
    train(*flags, *TRACKED)
    assert points(folder) == while_training
    assert read(folder).Tags()["images"] == images
    train(*flags, *TRACKED)
    assert points(folder) == while_training


def test_measurements_added_later_are_written_each_under_its_own_tag(train):
    flags = ("--n_epochs", 2, "--save_snr", 0, *TRACKED)
    folder = train(*flags, "--figures", 0)
    assert not read(folder).Tags()["images"]
    train(*flags, "--metric_rtol", 0.02)
    for rtol in (0.05, 0.02):
        assert [step for step, _ in points(folder)[f"fisher/train/all/layers/spectral-fim-rtol{rtol}/value"]] == [0, 2]
    assert "figures/metrics" in read(folder).Tags()["images"]


def test_overwriting_a_run_clears_its_events(train):
    folder = train(*SHORT, *TRACKED)
    train(*SHORT, "--overwrite", 1)
    assert not list((folder / "tensorboard").iterdir())
    train(*SHORT, *TRACKED, "--overwrite", 1)
    assert of_history(points(folder)) == history_points(folder)


def tables(path: Path, *, epochs: int, measured: list[int]) -> RunFolder:
    """A run folder with made-up rows of history.csv and metrics.csv."""
    folder = RunFolder(path)
    path.mkdir(exist_ok=True)
    folder.config.write_text("lr: 0.1\n")
    history, metrics = folder.history(), folder.metrics()
    history.rows, metrics.rows = [], []
    for epoch in range(epochs):
        history.append({"epoch": epoch, "acc_test": epoch / 10, "seconds": 1.0})
    for epoch in measured:
        what = {"metric": "fisher", "split": "train", "subset": "all", "layer": "all", "params": "layers", "settings": "{}"}
        metrics.append(what | {"epoch": epoch, "value": epoch + 0.5})
    history.write()
    metrics.write()
    return folder


def board(folder: RunFolder) -> TensorBoard:
    return TensorBoard(folder, folder.path / "tensorboard")


def test_steps_increase_whatever_the_order_of_the_rows_and_epochs_without_history_are_left_out(tmp_path):
    board(tables(tmp_path, epochs=4, measured=[3, 1, 4])).end()
    found = points(tmp_path)
    assert found["fisher/train/all/layers/value"] == [(1, 1.5), (3, 3.5)]
    assert "fisher/train/all/layers/standard_error" not in found


def test_a_tensorboard_that_watches_sees_the_new_file_and_no_step_twice(tmp_path):
    tracker = board(tables(tmp_path, epochs=3, measured=[]))
    tracker.epoch(2)
    watching = read(tmp_path)
    tables(tmp_path, epochs=4, measured=[])
    tracker.epoch(3)
    assert [event.step for event in watching.Reload().Scalars("history/acc_test")] == [0, 1, 2, 3]
    tables(tmp_path, epochs=2, measured=[])  # fewer rows than it has read
    tracker.epoch(1)
    assert [event.step for event in watching.Reload().Scalars("history/acc_test")] == [0, 1]
    board(tables(tmp_path, epochs=5, measured=[])).epoch(4)  # another process
    assert [event.step for event in watching.Reload().Scalars("history/acc_test")] == [0, 1, 2, 3, 4]
    assert [event.step for event in read(tmp_path).Scalars("history/acc_test")] == [0, 1, 2, 3, 4]


def test_killed_between_new_file_and_old_one_it_shows_every_step_once(tmp_path, monkeypatch):
    folder = tables(tmp_path, epochs=3, measured=[])
    place = folder.path / "tensorboard"
    board(folder).end()
    monkeypatch.setattr(optim.trackers.tensorboard, "empty", lambda file: None)
    board(folder).end()
    assert len(list(place.iterdir())) == 2
    assert points(tmp_path)["history/seconds"] == [(0, 1.0), (1, 1.0), (2, 1.0)]
    monkeypatch.undo()
    board(folder).end()
    assert sorted(file.stat().st_size > 0 for file in place.iterdir()) == [False, False, True]
    board(folder).end()
    assert sorted(file.stat().st_size > 0 for file in place.iterdir()) == [False, True]


# ------------------------------------------------------------------------------------------------------------ failures


def test_a_folder_that_cannot_be_written_costs_the_events_and_not_the_run(train):
    folder = train(*SHORT)
    before = [row["acc_test"] for row in rows(folder, "history")]
    (folder / "tensorboard").write_text("a file where the folder should be")
    train(*SHORT, *TRACKED, "--overwrite", 1)
    assert [row["acc_test"] for row in rows(folder, "history")] == before
    assert (folder / "summary.json").exists()
    log = (folder / "training.log").read_text()
    assert log.count("--tracker tensorboard: ") == 1
    assert "the tables have everything" in log
    (folder / "tensorboard").unlink()
    train(*SHORT, *TRACKED)
    assert of_history(points(folder)) == history_points(folder)


def test_after_half_a_record_the_next_epoch_starts_from_the_tables(train, monkeypatch):
    def half(tracker: TensorBoard) -> None:
        """The disk is full in the midst of epoch 2."""
        before = tracker.file.read_bytes()
        add_new_rows(tracker)
        content = tracker.file.read_bytes()
        if len(rows(tracker.folder.path, "history")) == 3:
            tracker.file.write_bytes(content[: (len(before) + len(content)) // 2])
            raise OSError(28, "No space left on device")

    add_new_rows = TensorBoard.add_new_rows
    monkeypatch.setattr(TensorBoard, "add_new_rows", half)
    monkeypatch.setattr(TensorBoard, "end", lambda tracker: None)  # what is there without it
    folder = train("--n_epochs", 4, *SHORT[:2], *SHORT[4:], *TRACKED)
    assert "No space left on device" in (folder / "training.log").read_text()
    assert of_history(points(folder)) == history_points(folder)


def without(package: str, *flags: object) -> subprocess.CompletedProcess:
    """run.py in a process in which a package cannot be imported."""
    code = f"import sys; sys.modules[{package!r}] = None; import run; run.main({list(map(str, flags))!r})"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600, cwd=ROOT)


@pytest.mark.parametrize(
    ("tracker", "package", "cure"),
    [("tensorboard", "tensorboard", "tensorboard"), ("wandb", "wandb", "wandb"),
     ("mlflow", "sqlalchemy", "mlflow sqlalchemy alembic")],
)  # fmt: skip
def test_without_the_package_one_line_says_so_before_anything_is_trained(tmp_path, tracker, package, cure):
    flags = ("--mode", "sparse-finetune", *SHORT, "--tracker", tracker, "-rr", tmp_path / "results")
    done = without(package, *flags)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        f"run.py: error: --tracker {tracker}: the package {package} is not installed; pip install {cure}, or use --tracker none"
    ]
    assert not (tmp_path / "results").exists()


def test_without_the_flag_the_package_is_not_needed(tmp_path):
    done = without("tensorboard", *SHORT, "-rr", tmp_path)
    assert done.returncode == 0, done.stderr
    assert not (Path(done.stdout.strip()) / "tensorboard").exists()


def test_an_unknown_tracker_is_refused(refuse):
    assert "--tracker tensorbord: not one of none, tensorboard, wandb, mlflow; did you mean tensorboard?" in refuse(
        "--tracker", "tensorbord"
    )


@pytest.mark.parametrize("words", ["none,tensorboard", "tensorboard,none", "", ","])
def test_none_stands_alone_and_nothing_is_no_tracker(refuse, words):
    assert f"--tracker {words}: " in refuse("--tracker", words)


# -------------------------------------------------------------------------------------------------- several trackers


@pytest.fixture
def lines(monkeypatch) -> type[Lines]:
    """A second tracker: a file, and one line in the registry."""
    monkeypatch.setitem(TRACKERS, "lines", TrackerSpec("lines", "tests.lines_tracker"))
    monkeypatch.setattr(Lines, "refuse", ())
    return Lines


def written(folder: Path) -> list[str]:
    return (folder / "lines/lines.txt").read_text().splitlines()


def test_the_words_of_tracker_have_one_form_and_change_no_identity(lines, refuse):
    given = ["lines,tensorboard", "tensorboard,lines", " lines, tensorboard ", "tensorboard,lines,tensorboard"]
    configs = [unflatten(RunConfig, {"tracker": words}) for words in given]
    assert {config.tracker for config in configs} == {"tensorboard,lines"}
    assert run_identity(configs[0], None) == run_identity(RunConfig(), None)
    assert "did you mean lines?" in refuse("--tracker", "tensorboard,line")


def test_a_sweep_takes_several_trackers_for_one_value(lines):
    usage = experiment.COMMANDS["sweep"].usage("sweep")
    found = parse(SweepConfig, usage, ["a.yaml", "--tracker", "lines,tensorboard", "--lr", "0.1,0.2"]).lists
    assert found == {"tracker": ["lines,tensorboard"], "lr": ["0.1", "0.2"]}


def test_a_second_tracker_works_beside_tensorboard_in_run_measure_and_report(lines, train, tmp_path):
    both = ("--tracker", "lines,tensorboard")
    folder = train(*SHORT, *both)
    accuracies = [f"{row['epoch']} {row['acc_test']}" for row in rows(folder, "history")]
    assert written(folder) == [*accuracies, "end finished=True metrics=0"]
    assert of_history(points(folder)) == history_points(folder)

    assert outcome(experiment.main, "measure", folder, "--metrics", "fisher", "-ms", 20).code == 0
    assert written(folder)[-1] == f"end finished=True metrics={len(rows(folder, 'metrics'))}"
    assert "final/fisher" in points(folder)
    assert outcome(experiment.main, "report", tmp_path).code == 0

    train(*SHORT, "--overwrite", 1)  # each of them cleans its own folder, whether or not the run has it now
    assert not [file for name in ("lines", "tensorboard") for file in (folder / name).iterdir()]


def test_both_go_on_with_a_resumed_run(lines, train, monkeypatch, tmp_path):
    signals = StopsInSecondEpoch(n_steps=4, steps=2)
    flags = {"n_epochs": 3, "limit_train": 200, "batch_size": 50, "figures": 0, "save_snr": 0, "save_fisher": 0}
    config = unflatten(RunConfig, {"tracker": "tensorboard,lines", "results_root": str(tmp_path), **flags})
    with pytest.raises(Interrupted):
        train_run(config, signals)
    folder = train_run(config)
    assert [line.split()[0] for line in written(folder)] == ["0", "1", "2", "3", "end"]
    assert of_history(points(folder)) == history_points(folder)


def test_a_tracker_that_raises_stops_neither_the_run_nor_another_tracker_and_is_tried_again(lines, train, caplog):
    lines.refuse = (0, 1)
    folder = train(*SHORT, "--tracker", "lines,tensorboard")
    assert [line.split()[0] for line in written(folder)] == ["2", "end"]
    assert of_history(points(folder)) == history_points(folder)
    said = [record.getMessage() for record in caplog.records if "--tracker" in record.getMessage()]
    assert len(said) == 1
    assert said[0].startswith("--tracker lines: Refused: the line is engaged; the tables have everything")


def test_a_tracker_that_fails_again_after_it_worked_is_reported_again(lines, tmp_path, caplog):
    lines.refuse = (0, 2)
    trackers = Trackers("lines", tables(tmp_path, epochs=1, measured=[]))
    for epoch in range(4):
        trackers.epoch(epoch)
    assert [line.split()[0] for line in written(tmp_path)] == ["1", "3"]
    assert caplog.text.count("the line is engaged") == 2


def test_a_tracker_that_takes_long_to_fail_is_left_alone_for_ten_times_as_long_but_not_at_the_end(lines, tmp_path, monkeypatch):
    lines.refuse, now, tried = (0, 1, "end"), [0.0], []
    monkeypatch.setattr(optim.trackers.main.time, "monotonic", lambda: now[0])
    usual = lines.write

    def slow(tracker: Lines, event: int | str, line: str) -> None:
        now[0] += 30.0
        tried.append(event)
        usual(tracker, event, line)

    monkeypatch.setattr(lines, "write", slow)
    trackers = Trackers("lines", tables(tmp_path, epochs=1, measured=[]))
    trackers.epoch(0)
    now[0] += 299.0
    trackers.epoch(1)
    trackers.end()
    now[0] += 301.0
    trackers.epoch(2)
    assert tried == [0, "end", 2]


def test_an_interruption_while_a_sweep_is_joined_ends_the_sweep(tmp_path, monkeypatch):
    def interrupted(root: Path, name: str) -> dict[str, str]:
        raise Interrupted("SIGTERM")

    monkeypatch.setitem(sys.modules, "stopped_tracker", types.SimpleNamespace(join_sweep=interrupted))
    monkeypatch.setitem(TRACKERS, "stopped", TrackerSpec("stopped", "stopped_tracker", joins_sweeps=True))
    with pytest.raises(Interrupted):
        join_sweep("stopped", tmp_path, "Figure 1")


def test_an_interruption_is_no_failure_of_a_tracker(lines, tmp_path, monkeypatch):
    def interrupted(tracker: Lines, epoch: int) -> None:
        raise Interrupted("SIGTERM")

    monkeypatch.setattr(lines, "epoch", interrupted)
    with pytest.raises(Interrupted):
        Trackers("lines", tables(tmp_path, epochs=1, measured=[])).epoch(0)


# ---------------------------------------------------------------------------------------------- tables read once


def test_a_reader_gives_each_row_once_and_does_not_look_at_those_before(tmp_path):
    path = tmp_path / "history.csv"
    reader = TableReader(path, ["epoch", "acc", "new"])
    assert (reader.new_rows(), reader.goes_on()) == ([], True)
    path.write_text('epoch,acc\n0,"0,5"\n')
    assert reader.new_rows() == [{"epoch": "0", "acc": "0,5", "new": ""}]
    assert reader.new_rows() == []
    path.write_text('epoch,acc\n"""""""\n1,0.6\n2,0.7\n')  # what was read before is no table any more
    assert [row["epoch"] for row in reader.new_rows()] == ["1", "2"]


@pytest.mark.parametrize("text", ["epoch,acc\n0,0.1\n", "epoch,acc\n0,0.1\n1,0.3\n", "", None])
def test_a_reader_knows_that_rows_were_taken_out_or_changed(tmp_path, text):
    path = tmp_path / "history.csv"
    path.write_text("epoch,acc\n0,0.1\n1,0.2\n")
    reader = TableReader(path, ["epoch"])
    reader.new_rows()
    assert reader.goes_on()
    path.unlink() if text is None else path.write_text(text)
    assert not reader.goes_on()


def test_a_reader_names_the_line_that_is_not_whole(tmp_path):
    path = tmp_path / "history.csv"
    path.write_text("epoch,acc\n0,0.1\n")
    reader = TableReader(path, ["epoch"])
    reader.new_rows()
    path.write_text("epoch,acc\n0,0.1\n1,0.2\n2\n")
    with pytest.raises(DamagedTable, match="line 4 has more or fewer cells"):
        reader.new_rows()


def test_while_a_run_trains_each_row_is_parsed_once(train, monkeypatch):
    parsed: list[int] = []
    parse_rows = helper.tables.parse_rows

    def counted(*args: object) -> object:
        found = parse_rows(*args)
        parsed.append(len(found[1]))
        return found

    read_tables = NewRows.read

    def reading(tables: NewRows) -> object:
        with monkeypatch.context() as patch:
            patch.setattr(helper.tables, "parse_rows", counted)
            return read_tables(tables)

    monkeypatch.setattr(NewRows, "read", reading)
    monkeypatch.setattr(TensorBoard, "end", lambda tracker: None)  # which writes everything once more
    folder = train("--n_epochs", 5, "--figures", 0, "--save_fisher", 0, "--metric_every", 0, *TRACKED)
    assert sum(parsed) == len(rows(folder, "history")) + len(rows(folder, "snr"))

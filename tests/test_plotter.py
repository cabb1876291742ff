"""A run's figures show the numbers of its tables: every line and error bar against the columns."""

import matplotlib.pyplot as plt
import numpy
import pytest
from matplotlib.axes import Axes

from helper.drawing import STYLE, plain_log, save_figure
from helper.plotter import spectrum
from helper.plotter.gradients import gradients, snr
from helper.plotter.measurements import metrics
from helper.plotter.spectrum import draw_spectrum
from helper.plotter.training import noisy_performance, performance

EPOCHS = numpy.array([0.0, 1.0, 2.0, 3.0])


@pytest.fixture(autouse=True)
def _closed():
    yield
    plt.close("all")


def column(seed: int, n: int = 4) -> numpy.ndarray:
    return numpy.random.default_rng(seed).uniform(0.1, 0.9, n)


def lines(axis: Axes) -> dict[str, list[list[float]]]:
    """{label: [x, y]} of the named lines."""
    named = {line.get_label(): line for line in axis.lines if not line.get_label().startswith("_")}
    return {label: [line.get_xdata().tolist(), line.get_ydata().tolist()] for label, line in named.items()}


def drawn(values: numpy.ndarray, epochs: numpy.ndarray = EPOCHS) -> list[list[float]]:
    return [epochs.tolist(), pytest.approx(values.tolist())]


def test_losses_and_accuracies_are_drawn_under_their_names():
    names = ("loss_train", "loss_val", "loss_test", "acc_train", "acc_val", "acc_test", "entropy_train")
    history = {"epoch": EPOCHS} | {name: column(seed) for seed, name in enumerate(names)}
    loss, accuracy, entropy = performance(history).axes
    for axis, quantity in ((loss, "loss"), (accuracy, "acc")):
        assert lines(axis) == {
            "training": drawn(history[f"{quantity}_train"]),
            "validation": drawn(history[f"{quantity}_val"]),
            "test": drawn(history[f"{quantity}_test"]),
        }
    assert [entropy.lines[0].get_xdata().tolist(), entropy.lines[0].get_ydata().tolist()] == drawn(history["entropy_train"])


def test_shares_under_label_noise_are_drawn_under_their_names():
    names = ("loss_clean", "loss_noisy", "acc_clean", "acc_test", "acc_generalized", "acc_memorized")
    history = {"epoch": EPOCHS} | {name: column(seed) for seed, name in enumerate(names)}
    loss, accuracy, mislabelled = noisy_performance(history).axes
    assert lines(loss) == {"clean labels": drawn(history["loss_clean"]), "wrong labels": drawn(history["loss_noisy"])}
    assert lines(accuracy) == {"clean labels: correct": drawn(history["acc_clean"]), "test": drawn(history["acc_test"])}
    assert lines(mislabelled) == {
        "predicted as the true label": drawn(history["acc_generalized"]),
        "predicted as the given wrong label": drawn(history["acc_memorized"]),
    }


def snr_table(mode: str, seed: int) -> dict[str, numpy.ndarray]:
    """Two layers at four epochs, as snr.csv has them."""
    values = {name: column(seed + i, 8) for i, name in enumerate(("weight_norm", "grad_mean_norm", "grad_std_norm", "snr"))}
    layers = {"epoch": EPOCHS.repeat(2), "layer": numpy.array(["a", "b"] * 4), "n_batches": numpy.full(8, 16.0)}
    return layers | values | {"mode": numpy.array([mode] * 8)}


def test_gradients_are_drawn_layer_by_layer_relative_to_the_weights_and_snr_with_its_floor():
    fixed, online = snr_table("fixed", 0), snr_table("online", 9)
    table = {name: numpy.concatenate([online[name], fixed[name]]) for name in fixed}
    (axis,) = snr(table).axes
    assert {name: lines(axis)[name] for name in "ab"} == {"a": drawn(fixed["snr"][::2]), "b": drawn(fixed["snr"][1::2])}
    assert axis.lines[-1].get_ydata()[0] == 0.25  # 1 / sqrt(16 batches)
    shown = (
        fixed["weight_norm"],
        fixed["grad_mean_norm"] / fixed["weight_norm"],
        fixed["grad_std_norm"] / fixed["weight_norm"],
    )
    for axis, values in zip(gradients(table).axes, shown, strict=True):
        assert lines(axis) == {"a": drawn(values[::2]), "b": drawn(values[1::2])}


def test_measurements_are_drawn_in_order_of_epochs_with_95_percent_intervals_of_every_subset():
    n = 6
    table = {
        "epoch": numpy.array([3.0, 0.0] * 3), "metric": numpy.array(["fisher"] * n), "layer": numpy.array(["all"] * n),
        "subset": numpy.repeat(["all", "clean", "mislabelled"], 2), "value": column(0, n), "standard_error": column(1, n) / 10,
        "estimator": numpy.array(["spectral; every example"] * n), "params": numpy.array(["layers"] * n),
        "split": numpy.array(["train"] * n), "settings": numpy.array(["{}"] * n),
        "degrees": numpy.array([numpy.nan, 9.0] * 3),
    }  # fmt: skip
    layers = {name: values.copy() for name, values in table.items()} | {"layer": numpy.array(["a"] * n), "value": column(2, n)}
    (axis,) = metrics({name: numpy.concatenate([layers[name], table[name]]) for name in table}, {"fisher": "Tr F"}).axes
    assert axis.get_ylabel() == "Tr F"
    names = ("spectral, layers, train", "spectral, layers, train, clean", "spectral, layers, train, mislabelled")
    for index, (name, container) in enumerate(zip(names, axis.containers, strict=True)):
        rows = [2 * index + 1, 2 * index]  # epoch 0, then 3
        line, _, (bars,) = container.lines
        assert container.get_label() == name
        assert [line.get_xdata().tolist(), line.get_ydata().tolist()] == drawn(table["value"][rows], numpy.array([0.0, 3.0]))
        lengths = [segment[1, 1] - segment[0, 1] for segment in bars.get_segments()]
        assert lengths == pytest.approx(numpy.array([2 * 2.262157, 2 * 1.959964]) * table["standard_error"][rows], rel=1e-4)


@pytest.fixture
def arrays() -> dict[str, object]:
    """Of spectrum.npz, from 60 of 500 examples."""
    values, bias = numpy.array([5.0, 3.0, -1.0]), numpy.array([1.0, 0.5, -0.25])
    return {
        "grid": numpy.linspace(-1, 5, 50), "density": column(0, 50), "density_errors": numpy.full(50, 0.01),
        "eigenvalues": values, "residuals": numpy.array([0.1, 0.2, 0.3]), "bias": bias, "corrected": values - bias,
        "standard_errors": numpy.array([1.0, 2.0, 3.0]), "sigma": 0.1, "size": 100, "n_samples": 60, "population": 500,
        "matrix": "hessian",
    }  # fmt: skip


def drawn_spectrum(arrays, tmp_path, monkeypatch):
    kept = []
    monkeypatch.setattr(spectrum, "save_figure", lambda figure, stem: kept.append(figure) or save_figure(figure, stem))
    draw_spectrum(arrays, tmp_path / "spectrum")
    return kept[0]


def test_a_spectrum_of_a_sample_shows_it_beside_what_it_says_of_all_examples(arrays, tmp_path, monkeypatch):
    figure = drawn_spectrum(arrays, tmp_path, monkeypatch)
    left, right = figure.axes
    assert [left.lines[0].get_xdata().tolist(), left.lines[0].get_ydata().tolist()] == drawn(arrays["density"], arrays["grid"])
    assert right.lines[0].get_ydata().tolist() == [5, 3, -1]
    line, _, (bars,) = right.containers[0].lines
    assert line.get_ydata().tolist() == [4, 2.5, -0.75]
    assert [segment[1, 1] - segment[0, 1] for segment in bars.get_segments()] == pytest.approx([4.1, 8.2, 12.3])
    assert "60 of 500 examples; Lanczos' residuals are at most 0.3" in figure.get_suptitle()


def test_a_spectrum_of_all_examples_has_no_bars(arrays, tmp_path, monkeypatch):
    figure = drawn_spectrum(arrays | {"n_samples": 500}, tmp_path, monkeypatch)
    _, right = figure.axes
    assert [right.lines[0].get_xdata().tolist(), right.lines[0].get_ydata().tolist()] == [[1, 2, 3], [5, 3, -1]]
    assert not right.containers
    assert "all 500 examples" in figure.get_suptitle()


def test_a_figure_that_cannot_be_written_leaves_the_former_file_whole(tmp_path, monkeypatch):
    before = save_figure(plt.figure(), tmp_path / "figure").read_bytes()

    def full(*paths):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("helper.system.files.os.replace", full)
    with pytest.raises(OSError, match="No space"):
        save_figure(plt.figure(figsize=(1, 1)), tmp_path / "figure")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["figure.pdf", "figure.png"]
    assert (tmp_path / "figure.png").read_bytes() == before


@pytest.mark.parametrize("constrained", [True, False])
def test_a_saved_figure_looks_as_savefig_draws_it(constrained, tmp_path):
    """Pixel by pixel: with a layout that is found while drawing, and with axes that are placed by hand."""
    with plt.rc_context(STYLE | {"figure.constrained_layout.use": constrained}):
        figure, axis = plt.subplots()
        axis.plot([0, 1], [1, 3])
        axis.set(xlabel="epoch", ylabel="loss (nats)")
        figure.savefig(tmp_path / "plain.png", dpi=150)
        png = save_figure(figure, tmp_path / "saved")
    found, expected = (plt.imread(path) for path in (png, tmp_path / "plain.png"))
    assert found.shape == expected.shape
    assert (found == expected).all()


# ----------------------------------------------------------------------------------------------- what the eye stumbles over


def history() -> dict[str, numpy.ndarray]:
    names = ("loss_train", "loss_test", "acc_train", "acc_test", "entropy_train", "loss_clean", "loss_noisy", "acc_clean")
    return {"epoch": EPOCHS} | {name: column(i) for i, name in enumerate((*names, "acc_generalized", "acc_memorized"))}


FIGURES_OF_A_RUN = {
    "performance": lambda: performance(history()),
    "noisy performance": lambda: noisy_performance(history()),
    "snr": lambda: snr(snr_table("fixed", 0)),
    "snr of the training steps": lambda: snr(snr_table("online", 0)),
    "gradients": lambda: gradients(snr_table("fixed", 0)),
}


@pytest.mark.parametrize("name", FIGURES_OF_A_RUN)
def test_a_label_is_no_longer_than_its_axis(name):
    with plt.rc_context(STYLE):
        figure = FIGURES_OF_A_RUN[name]()
        figure.suptitle("a run\nand its folder", fontsize=10)  # as draw_run has it
    within(figure)


def test_the_labels_of_a_spectrum_are_no_longer_than_its_axes_and_have_units(arrays, tmp_path, monkeypatch):
    figure = drawn_spectrum(arrays, tmp_path, monkeypatch)
    within(figure)
    left, right = figure.axes
    assert left.get_xlabel() == right.get_ylabel() == "eigenvalue (nats per squared parameter)"


def within(figure) -> None:
    figure.canvas.draw()
    for axis in figure.axes:
        box, label = axis.get_window_extent(), axis.yaxis.label.get_window_extent()
        assert label.height <= box.height, axis.get_ylabel()


@pytest.mark.parametrize(("low", "high"), [(0.13, 0.2), (0.2, 4.5), (0.12, 4.5), (1.1, 70)])
def test_ticks_of_a_few_decades_are_plain_numbers_and_not_too_many(low, high):
    figure, axis = plt.subplots(figsize=(4, 4))
    axis.plot([0, 1], [low, high])
    plain_log(axis)
    figure.canvas.draw()
    bottom, top = axis.get_ylim()
    ticks = [(t.get_loc(), t.label1.get_text()) for t in [*axis.yaxis.get_major_ticks(), *axis.yaxis.get_minor_ticks()]]
    shown = {text for place, text in ticks if bottom <= place <= top and text}
    assert 2 <= len(shown) <= 9
    assert all(float(text) > 0 for text in shown)


def test_a_constant_entropy_is_not_drawn_along_the_edge():
    constant = history() | {"entropy_train": numpy.full(4, 2.3)}
    axis = performance(constant).axes[2]
    assert axis.get_ylim() == (0, pytest.approx(2.3 * 1.05, rel=0.06))
    assert axis.get_ylim()[1] > 2.3 * 1.02

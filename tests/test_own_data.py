"""Data of a user's own: arrays in .npz files, folders of images, functions; in memory or row by row."""

import io
import zipfile
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image

import run as command_line
from helper.own import calls, consent
from helper.system.seeds import stream
from loader import decoded, on_demand
from loader.archives import DataError
from loader.arrays import content_of
from loader.dataset import Dataset, Source
from loader.main import DataConfig, fingerprint_of, load_dataset, read
from loader.on_demand import Mapping, OnDemand
from tests.outcome import outcome

N_TRAIN, N_TEST = 60, 30
QUICK = ("--n_epochs", 1, "--lr_milestones", 1, "--batch_size", 20, "--figures", 0, "--save_fisher", 0, "--hidden_dims", "8")


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """An empty working directory with a cache of its own, in which nothing is trusted yet."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(consent, "NAMED", set())
    monkeypatch.setattr(calls, "LOADED", {})
    load_dataset.cache_clear()
    return tmp_path


def made_up(shape: tuple[int, ...] = (3, 8, 8), **changes: object) -> dict[str, numpy.ndarray]:
    """Arrays of three classes."""
    draw = numpy.random.default_rng(0)
    arrays = {
        "x_train": draw.integers(0, 256, (N_TRAIN, *shape), dtype=numpy.uint8), "y_train": numpy.arange(N_TRAIN) % 3,
        "x_test": draw.integers(0, 256, (N_TEST, *shape), dtype=numpy.uint8), "y_test": numpy.arange(N_TEST) % 3,
    }  # fmt: skip
    return {name: value for name, value in (arrays | changes).items() if value is not None}


def npz(path: Path = Path("data.npz"), **arrays: object) -> Path:
    numpy.savez(path, **(arrays or made_up()))
    return path


def source(name: str = "npz", **flags: object) -> Source:
    return read(DataConfig(loader_name=name, **{"root": ".", **flags}))


def refused(name: str = "npz", **flags: object) -> str:
    """The one line with which data are refused."""
    with pytest.raises(DataError) as refusal:
        source(name, **flags)
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


# --------------------------------------------------------------------------------------------------------------- arrays


def test_arrays_are_as_they_stand_and_normalised_by_the_training_examples(here):
    arrays = made_up()
    npz(**arrays)
    found = source()
    assert torch.equal(found.train_inputs, torch.from_numpy(arrays["x_train"]))
    assert torch.equal(found.test_labels, torch.from_numpy(arrays["y_test"]))
    assert found.class_names == ("0", "1", "2")
    channels = arrays["x_train"].transpose(1, 0, 2, 3).reshape(3, -1) / 255
    assert found.mean == pytest.approx(channels.mean(1), abs=1e-6)
    assert found.std == pytest.approx(channels.std(1), abs=1e-6)
    data = load_dataset(DataConfig(loader_name="npz", root="."))
    seen = data.normalise(data.train.inputs)
    assert abs(seen.mean()) < 1e-5
    assert abs(seen.std(correction=0) - 1) < 1e-4


@pytest.mark.parametrize(
    ("stored", "given"),
    [
        ((8, 8), (1, 8, 8)), ((8, 9, 3), (3, 8, 9)), ((3, 8, 9), (3, 8, 9)), ((1, 8, 8), (1, 8, 8)), ((8, 8, 1), (1, 8, 8)),
        ((5,), (5,)),
    ],
)  # fmt: skip
def test_images_get_their_channels_in_front(here, stored, given):
    arrays = made_up(stored)
    npz(**arrays)
    found = source().train_inputs
    assert tuple(found.shape[1:]) == given
    moved = arrays["x_train"] if found.ndim == arrays["x_train"].ndim else arrays["x_train"][:, None]
    moved = moved if moved.shape == tuple(found.shape) else moved.transpose(0, 3, 1, 2)
    assert torch.equal(found, torch.from_numpy(numpy.ascontiguousarray(moved)))


def test_numbers_are_bytes_where_they_can_be_and_floating_point_else(here):
    values = numpy.random.default_rng(1).normal(3, 2, (N_TRAIN, 5))
    npz(**made_up((5,), x_train=values, x_test=values[:N_TEST].astype(">f2")))
    found = source()
    assert (found.train_inputs.dtype, found.test_inputs.dtype, found.scale) == (torch.float32, torch.float32, 1.0)
    assert found.mean == pytest.approx((values.astype(numpy.float32).mean(),), abs=1e-5)
    npz(**made_up((5,), x_train=numpy.arange(N_TRAIN * 5).reshape(N_TRAIN, 5) % 256))
    assert source().train_inputs.dtype == torch.uint8


def test_labels_may_be_names_or_a_column_of_numbers(here):
    names = numpy.array(["b", "a", "c"])
    npz(**made_up(y_train=names[numpy.arange(N_TRAIN) % 3], y_test=names[numpy.arange(N_TEST) % 3]))
    found = source()
    assert found.class_names == ("a", "b", "c")
    assert found.train_labels[:3].tolist() == [1, 0, 2]
    column = {"y_train": (numpy.arange(N_TRAIN) % 3)[:, None], "y_test": (numpy.arange(N_TEST) % 3.0)[:, None]}
    npz(**made_up(**column, class_names=numpy.array(["x", "y", "z"])))
    assert source().class_names == ("x", "y", "z")
    assert source().train_labels.tolist() == (torch.arange(N_TRAIN) % 3).tolist()


def test_a_compressed_file_is_the_same_data_and_other_bytes_are_other_data(here):
    npz()
    numpy.savez_compressed("packed.npz", **made_up())
    assert torch.equal(source(filename="packed.npz").train_inputs, source().train_inputs)
    first = fingerprint_of(DataConfig(loader_name="npz", root="."))
    (here / "moved").mkdir()
    npz(Path("moved/other.npz"))
    assert fingerprint_of(DataConfig(loader_name="npz", root="moved", filename="other.npz")) == first
    npz(Path("moved/changed.npz"), **made_up(y_test=numpy.zeros(N_TEST, dtype=int)))
    assert fingerprint_of(DataConfig(loader_name="npz", root="moved", filename="changed.npz")) != first


OBJECTS = numpy.array([{"a": 1}] * N_TRAIN, dtype=object)
BAD_ARRAYS = {
    "objects": ({"x_train": OBJECTS}, "x_train holds Python objects, which may run code"),
    "objects as labels": ({"y_test": OBJECTS}, "y_test holds Python objects"),
    "missing": ({"x_test": None}, "has no x_test: it has to have x_train, y_train, x_test, y_test"),
    "missing labels": ({"y_train": None}, "has no y_train"),
    "lengths": ({"y_train": numpy.arange(59) % 3}, "x_train has 60 rows and y_train 59"),
    "negative": ({"y_train": numpy.arange(N_TRAIN) % 3 - 1}, "y_train has the label -1, which is outside of 0 to 1"),
    "beyond": ({"y_test": numpy.arange(N_TEST) % 4}, "y_test has the label 3, which is outside of 0 to 2"),
    "unknown name": (
        {"y_train": numpy.array(["a", "b", "c"] * 20), "y_test": numpy.array(["d"] * N_TEST)}, "y_test has the label d",
    ),
    "gap": ({"y_train": numpy.arange(N_TRAIN) % 3 * 2}, "no training example is of class 1"),
    "one class": ({"y_train": numpy.zeros(N_TRAIN, int), "y_test": numpy.zeros(N_TEST, int)}, "has one class, 0"),
    "halves": ({"y_train": numpy.arange(N_TRAIN) % 3 + 0.5}, "y_train has to be whole numbers"),
    "one-hot": ({"y_train": numpy.eye(3)[numpy.arange(N_TRAIN) % 3]}, "one label for each row, not the shape (60, 3)"),
    "nan": ({"x_train": numpy.full((N_TRAIN, 3, 8, 8), numpy.nan)}, "x_train has values that are NaN"),
    "texts": ({"x_train": numpy.array(["a"] * N_TRAIN)}, "x_train has to hold numbers, not <U1"),
    "no rows": ({"x_train": numpy.zeros(N_TRAIN)}, "has to have rows of some size"),
    "other sizes": (
        {"x_test": numpy.zeros((N_TEST, 3, 8, 9), numpy.uint8)}, "x_train has rows of (3, 8, 8) and x_test of (3, 8, 9)",
    ),
    "too few names": ({"class_names": numpy.array(["a", "b"])}, "y_train has the label 2, which is outside of 0 to 1"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_arrays_that_are_no_data_set_are_refused_in_a_line_that_names_the_array(here, case):
    changes, reason = BAD_ARRAYS[case]
    npz(**made_up(**changes))
    assert reason in refused()
    done = outcome(command_line.main, "--loader_name", "npz", "--root", ".", *QUICK)
    assert (done.code, reason in done.line) == (1, True)
    assert not Path("results").exists()


def damaged_npz(path: Path, how: str) -> None:
    content = npz(path).read_bytes()
    if how == "short":
        path.write_bytes(content[: len(content) // 2])
    elif how == "text":
        path.write_text("x_train\n")
    else:
        with zipfile.ZipFile(path, "w") as archive:
            header = {"descr": "|u1", "fortran_order": False, "shape": (10**9, 3, 8, 8)}
            buffer = io.BytesIO()
            numpy.lib.format.write_array_header_1_0(buffer, header)
            archive.writestr("x_train.npy", buffer.getvalue() + b"1234")


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("short", "is damaged or no .npz file"), ("text", "is damaged or no .npz"),
        ("made up", "x_train has 4 bytes where its shape"),
    ],
)  # fmt: skip
def test_a_damaged_file_of_arrays_is_refused_in_a_line(here, how, reason):
    damaged_npz(here / "data.npz", how)
    assert reason in refused()


def test_a_file_that_is_not_there_is_asked_for(here):
    assert "gone.npz is no file: say with --root and --filename" in refused(filename="gone.npz")


# --------------------------------------------------------------------------------------------------------- row by row


@pytest.fixture
def from_disk(monkeypatch) -> None:
    """Nothing is small enough to be read as a whole."""
    monkeypatch.setattr(on_demand, "IN_MEMORY", 0)


def batches(data: Dataset) -> list[torch.Tensor]:
    order = torch.randperm(len(data.train), generator=stream(1, "order"))
    splits = [(data.train, order), (data.val, None), (data.test, None)]
    return [inputs for split, rows in splits for inputs, *_ in data.batches(split, 7, rows)]


@pytest.mark.parametrize("shape", [(3, 8, 8), (8, 9, 3), (8, 8), (5,)])
@pytest.mark.parametrize("flags", [{}, {"limit_train": 33, "val_size": 0.3, "limit_classes": 2, "limit_test": 11}])
def test_rows_on_demand_are_those_of_the_whole_in_the_same_order(here, monkeypatch, shape, flags):
    npz(**made_up(shape))
    config = DataConfig(loader_name="npz", root=".", **flags)
    whole = load_dataset(config)
    monkeypatch.setattr(on_demand, "IN_MEMORY", 0)
    load_dataset.cache_clear()
    data = load_dataset(config)
    assert isinstance(data.train.inputs, OnDemand)
    assert (data.fingerprint, data.mean, data.std, data.input_shape) == (
        whole.fingerprint,
        whole.mean,
        whole.std,
        whole.input_shape,
    )
    assert all(torch.equal(a, b) for a, b in zip(batches(data), batches(whole), strict=True))
    rows = torch.tensor([5, 2])
    assert torch.equal(data.examples(data.train)[rows], whole.examples(whole.train)[rows])


def test_rows_are_read_when_they_are_asked_for_and_not_before(here, from_disk):
    """What is written into the file after it has been opened is what a later batch has."""
    arrays = made_up((5,))
    path = npz(**arrays)
    data = load_dataset(DataConfig(loader_name="npz", root=".", limit_train=50, val_size=0.1))
    row = int(data.train.indices[3])
    content = path.read_bytes()
    at = content.index(arrays["x_train"][row].tobytes())
    with open(path, "r+b") as file:
        file.seek(at)
        file.write(bytes([9, 8, 7, 6, 5]))
    assert data.train[torch.tensor([3])].inputs.tolist() == [[9, 8, 7, 6, 5]]
    assert isinstance(data.to(torch.device("cpu")).train.inputs, OnDemand)


def test_pages_are_given_back_after_so_many_rows(monkeypatch):
    calls = []

    class Pages:
        def madvise(self, advice: int) -> None:
            calls.append(advice)

    monkeypatch.setattr(on_demand, "RELEASED", 10 * on_demand.PAGES)
    rows = OnDemand(torch.arange(40).view(20, 2).to(torch.uint8), mapping=Mapping(Pages()))
    for _ in range(4):
        rows[torch.arange(5)]
    assert len(calls) == 1


def test_a_run_from_disk_is_that_of_the_whole_to_the_bit(here, monkeypatch):
    npz(**made_up())
    flags = ("--loader_name", "npz_noisy", "--root", ".", "--augment", "crop_flip", *QUICK)
    states = []
    for folder, limit in (("whole", on_demand.IN_MEMORY), ("rows", 0)):
        monkeypatch.setattr(on_demand, "IN_MEMORY", limit)
        load_dataset.cache_clear()
        done = outcome(command_line.main, *flags, "--results_root", folder)
        assert done.code == 0, done.err
        states.append(torch.load(done.folder / "model.pt", weights_only=True)["network"])
        assert done.folder.relative_to(folder).parts[0] == "npz_noisy"
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_large_arrays_that_cannot_stay_on_disk_are_refused(here, from_disk):
    numpy.savez_compressed("data.npz", **made_up())
    assert "x_train is compressed and too large to be read at once: write it with numpy.savez" in refused()
    npz(**made_up((5,), x_train=numpy.arange(N_TRAIN * 5).reshape(N_TRAIN, 5)))
    assert "x_train is too large to be converted" in refused()


# ------------------------------------------------------------------------------------------------------ folders of images


Sizes = tuple[tuple[int, int], ...]


def images(root: Path, sizes: Sizes = ((6, 8),), mode: str = "RGB", n: int = 4) -> dict[str, list[numpy.ndarray]]:
    """`n` PNG files in each of two classes; {class: pixels as Pillow has them}."""
    draw, found = numpy.random.default_rng(len(str(root))), {}
    for name in ("cat", "dog"):
        (root / name).mkdir(parents=True, exist_ok=True)
        found[name] = []
        for index in range(n):
            height, width = sizes[index % len(sizes)]
            shape = (height, width, 3) if mode == "RGB" else (height, width)
            pixels = draw.integers(0, 256, shape, dtype=numpy.uint8)
            Image.fromarray(pixels).save(root / name / f"{index}.png")
            found[name].append(pixels)
    return found


def test_split_folders_are_read_as_pillow_reads_them(here):
    train, test = images(here / "pets/train"), images(here / "pets/val", n=2)
    found = source("folder", root="pets")
    assert found.class_names == ("cat", "dog")
    expected = numpy.stack([*train["cat"], *train["dog"]]).transpose(0, 3, 1, 2)
    assert torch.equal(found.train_inputs, torch.from_numpy(expected.copy()))
    assert torch.equal(
        found.test_inputs, torch.from_numpy(numpy.stack([*test["cat"], *test["dog"]]).transpose(0, 3, 1, 2).copy())
    )
    assert found.train_labels.tolist() == [0] * 4 + [1] * 4
    assert found.mean == pytest.approx((expected / 255).mean((0, 2, 3)), abs=1e-6)


def test_without_split_folders_a_balanced_share_is_held_out(here):
    pixels = images(here / "pets", mode="L", n=10)
    first, again, other = (source("folder", root="pets", test_size=0.3, split_seed=seed) for seed in (0, 0, 1))
    assert first.train_inputs.shape == (14, 1, 6, 8)
    assert first.test_labels.bincount().tolist() == [3, 3]
    assert torch.equal(first.train_inputs, again.train_inputs)
    assert not torch.equal(first.train_inputs, other.train_inputs)
    everything = torch.cat([first.train_inputs, first.test_inputs]).flatten(1).tolist()
    assert sorted(everything) == sorted(image.flatten().tolist() for each in pixels.values() for image in each)


def test_images_of_several_sizes_are_cut_and_resized_or_refused(here):
    images(here / "pets/train", ((6, 8), (12, 8)))
    images(here / "pets/test", n=2)
    assert "the images are of 2 sizes, such as 6x8 and 12x8: give --image_size" in refused("folder", root="pets")
    found = source("folder", root="pets", image_size=6)
    assert found.train_inputs.shape == (8, 3, 6, 6)
    first = Image.open(here / "pets/train/cat/0.png").crop((1, 0, 7, 6))
    assert numpy.array_equal(found.train_inputs[0].numpy().transpose(1, 2, 0), numpy.asarray(first))
    prints = {fingerprint_of(DataConfig(loader_name="folder", root="pets", image_size=size)) for size in (6, 7)}
    assert len(prints) == 2


def test_pictures_lie_as_the_camera_was_held_and_colours_win_over_grey(here):
    images(here / "pets/train", mode="L")
    images(here / "pets/test", n=1)
    turned = Image.fromarray(numpy.arange(48, dtype=numpy.uint8).reshape(8, 6))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    turned.save(here / "pets/train/cat/0.png", exif=exif)
    found = source("folder", root="pets")
    assert found.train_inputs.shape == (8, 3, 6, 8)
    assert found.train_inputs[0, 0].tolist() == numpy.rot90(numpy.arange(48).reshape(8, 6), -1).tolist()


def test_images_are_decoded_once_and_again_when_one_has_changed(here, monkeypatch):
    images(here / "pets/train")
    images(here / "pets/test", n=1)
    first = source("folder", root="pets")
    opened = []
    monkeypatch.setattr(decoded, "pixels_of", lambda path, *rest: opened.append(path))
    assert torch.equal(source("folder", root="pets").train_inputs, first.train_inputs)
    assert opened == []
    monkeypatch.undo()
    monkeypatch.chdir(here)
    monkeypatch.setenv("XDG_CACHE_HOME", str(here / "cache"))
    Image.fromarray(numpy.zeros((6, 8, 3), numpy.uint8)).save(here / "pets/train/cat/0.png")
    changed = source("folder", root="pets")
    assert changed.fingerprint != first.fingerprint
    assert changed.train_inputs[0].sum() == 0
    (here / "pets").rename(here / "moved")
    assert source("folder", root="moved").fingerprint == changed.fingerprint


def test_decoded_images_are_taken_row_by_row_from_the_cache(here, from_disk):
    pixels = images(here / "pets/train")
    images(here / "pets/test", n=1)
    found = source("folder", root="pets", image_cache="kept")
    assert isinstance(found.train_inputs, OnDemand)
    assert numpy.array_equal(found.train_inputs[torch.tensor([5])][0].numpy().transpose(1, 2, 0), pixels["dog"][1])
    (stored,) = Path("kept").glob("*/train.npy")
    stored.write_bytes(stored.read_bytes()[:-10])
    assert "has no decoded images" in refused("folder", root="pets", image_cache="kept")


def spoil(root: Path, case: str) -> None:
    victim = root / "train/dog/2.png"
    if case == "one class":
        for path in (root / "train/cat").iterdir():
            path.unlink()
        (root / "train/cat").rmdir()
    elif case == "empty class":
        (root / "train/bird").mkdir()
    elif case == "class of its own":
        (root / "train/dog").rename(root / "train/doge")
    elif case == "short":
        victim.write_bytes(victim.read_bytes()[:-40])
    elif case == "text":
        victim.write_text("no image")
    elif case == "empty file":
        victim.write_bytes(b"")
    elif case == "deep":
        Image.fromarray(numpy.full((6, 8), 700, numpy.uint16)).save(victim)
    elif case == "no folders":
        for path in sorted((root / "train").rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()


BAD_FOLDERS = {
    "one class": "pets/train has one class, dog: it has to have a folder of images for each of two or more",
    "empty class": "pets/train/bird has no images (.bmp",
    "class of its own": "pets/test/dog: there is no such class in pets/train",
    "short": "pets/train/dog/2.png is damaged or no image",
    "text": "pets/train/dog/2.png is damaged or no image",
    "empty file": "pets/train/dog/2.png is damaged or no image",
    "deep": "pets/train/dog/2.png has pixels of more than 8 bits",
    "no folders": "pets/train has no folders of classes",
}


@pytest.mark.parametrize("case", BAD_FOLDERS)
def test_folders_that_are_no_data_set_are_refused_in_a_line_that_names_the_file(here, case):
    images(here / "pets/train")
    images(here / "pets/test", n=1)
    spoil(here / "pets", case)
    assert BAD_FOLDERS[case] in refused("folder", root="pets")
    assert not list(here.glob("cache/price-of-sparsity/images/*"))  # nothing half made
    done = outcome(command_line.main, "--loader_name", "folder", "--root", "pets", *QUICK)
    assert (done.code, BAD_FOLDERS[case] in done.line) == (1, True)


def test_a_root_that_is_none_is_asked_for(here):
    assert "gone is no folder: say with --root" in refused("folder", root="gone")


def test_what_is_no_image_is_left_out(here):
    images(here / "pets/train")
    images(here / "pets/test", n=1)
    (here / "pets/train/cat/notes.txt").write_text("cats")
    (here / "pets/train/cat/.hidden.png").write_text("no image")
    (here / "pets/train/.git").mkdir()
    assert len(source("folder", root="pets").train_labels) == 8


# ------------------------------------------------------------------------------------------------------------- functions


def function(body: str, here: Path) -> str:
    """A file with a function of this body, named and trusted."""
    head = "import numpy\nimport torch\nfrom loader.dataset import Source\nfrom tests.test_own_data import made_up\n\n\n"
    (here / "data_of_mine.py").write_text(f"{head}{body}\n")
    consent.trust(["data_of_mine.py:f"])
    return "data_of_mine.py:f"


WAYS = {
    "mapping": "def f():\n    return made_up()",
    "four": "def f():\n    return tuple(made_up().values())",
    "pairs": "def f():\n    a = list(made_up().values())\n    return (a[0], a[1]), (a[2], a[3])",
    "tensors": "def f():\n    return {name: torch.from_numpy(value) for name, value in made_up().items()}",
}


@pytest.fixture
def own(here, monkeypatch):
    """own(body) -> the source of a function; every file is a module of its own."""

    def call(body: str, **flags: object) -> Source:
        calls.LOADED.clear()
        return source(function(body, here), **flags)

    return call


@pytest.mark.parametrize("way", WAYS)
def test_a_function_gives_arrays_or_tensors_in_any_of_four_forms(own, way):
    found = own(WAYS[way])
    arrays = made_up()
    assert torch.equal(found.train_inputs, torch.from_numpy(arrays["x_train"]))
    assert torch.equal(found.test_labels, torch.from_numpy(arrays["y_test"]))
    assert found.fingerprint == content_of(found)


def test_a_function_gives_a_source_or_training_examples_alone(own):
    body = "def f(n: int = 2):\n    x = torch.arange(40, dtype=torch.uint8).view(20, 2)\n    y = torch.arange(20) % n\n"
    whole = own(f"{body}    return Source(x, y, x, y, tuple('abcd')[:n], 40, (0.1,), (0.2,))", loader_args="n=4")
    assert (whole.mean, whole.class_names) == ((0.1,), ("a", "b", "c", "d"))
    alone = own(f"{body}    return x, y", test_size=0.2)
    assert (len(alone.train_labels), alone.test_labels.bincount().tolist()) == (16, [2, 2])


def test_data_of_a_function_are_known_by_their_content_and_told_by_flags(own):
    body = "def f(root, test_size, shift: int = 0):\n    a = made_up()\n    a['x_test'] = a['x_test'] ^ shift\n    return a"
    prints = {own(body, loader_args=text).fingerprint for text in ("", "shift=0", "shift=1")}
    assert len(prints) == 2
    assert own(f"# another file\n{body}").fingerprint in prints


BAD_FUNCTIONS = {
    "raises": ("def f():\n    return open('gone.csv')", "loading the data fails: FileNotFoundError: [Errno 2]"),
    "nothing": ("def f():\n    pass", "gives a NoneType: it has to give a loader.dataset.Source, or arrays x_train"),
    "three": ("def f():\n    return list(made_up().values())[:3]", "gives a list: it has to give"),
    "lists": ("def f():\n    return [[1], [2]], [0, 1]", "y_train has to be an array or a tensor, not a list"),
    "test labels alone": (
        "def f():\n    a = made_up()\n    del a['x_test']\n    return a", "has no x_test, but x_train, y_train, y_test",
    ),
    "a wrong source": (
        "def f():\n    x = torch.zeros(4, 2)\n    return Source(x, x, x, x, ('a',), 1, (0,), (1,))",
        "gives is no data set: train_labels",
    ),
    "an argument": ("def f(fold: int):\n    pass", "needs fold: give --loader_args fold=..."),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_FUNCTIONS)
def test_a_function_that_gives_something_else_is_refused_in_a_line(own, here, case):
    body, reason = BAD_FUNCTIONS[case]
    calls.LOADED.clear()
    word = function(body, here)
    done = outcome(command_line.main, "--loader_name", word, *QUICK)
    assert done.code in (1, 2)
    assert reason in done.line
    assert not Path("results").exists()


def test_a_run_on_data_of_a_function_has_its_name_and_its_noise(own, here):
    own(WAYS["mapping"])
    done = outcome(command_line.main, "--loader_name", "data_of_mine.py:f", "--train_noisy", 1, *QUICK, "--results_root", "r")
    assert done.code == 0, done.err
    assert done.folder.relative_to("r").parts[0] == "data_of_mine.f_noisy"
    assert (done.folder / "labels.npz").exists()

"""How much memory a run takes on data that does not fit into it: `python scripts/benchmark_memory.py --gigabytes 12`.

Makes up images of 96x96 pixels in one .npy file, of which the first page of each says its class and the rest is a hole in the
file, trains an MLP on all of them for an epoch through `--loader_name MODULE:FUNCTION`, and prints the largest resident memory
of that process, of any kind, beside what the same program takes for a thousand of these images.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy

SIDE, N_CLASSES, N_TEST, PAGE = 96, 4, 2000, 4096
FLAGS = (
    "--hidden_dims", "8", "--n_epochs", "1", "--lr_milestones", "1", "--lr", "0.01", "--batch_size", "256", "--figures", "0",
    "--save_snr", "0", "--save_fisher", "0", "--save_epochs", "none", "--train_eval", "running",
)  # fmt: skip


def write(path: Path, n: int) -> None:
    """n images, image i of class i modulo the number of classes, whose first page is that much brighter."""
    with open(path, "wb") as file:
        numpy.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": (n, 3, SIDE, SIDE)})
        start, size = file.tell(), 3 * SIDE * SIDE
        for i in range(n):
            file.seek(start + i * size)
            file.write(bytes([60 * (i % N_CLASSES)]) * PAGE)
        file.truncate(start + n * size)


def load(root: str, rows: int | None = None) -> tuple[numpy.ndarray, ...]:
    """Training and test images of `write` and their classes.

    Args:
        rows: of the training images; None: all.
    """
    images = numpy.load(Path(root) / "images.npy", mmap_mode="r")
    labels = numpy.arange(len(images)) % N_CLASSES
    train, test = images[N_TEST:], images[:N_TEST]
    return train[:rows], labels[N_TEST:][:rows], test, labels[:N_TEST]


def run(root: Path, more: tuple[str, ...] = ()) -> dict:
    """Summary of a run over the images."""
    program = Path(__file__).resolve().parents[1] / "run.py"
    words = ("--loader_name", f"{Path(__file__).resolve()}:load", "--root", str(root), "--results_root", str(root / "results"))
    done = subprocess.run([sys.executable, str(program), *words, *FLAGS, *more], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads((Path(done.stdout.splitlines()[-1]) / "summary.json").read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=12.0, help="of images")
    parser.add_argument("--folder", help="where they are made up and removed again; default: among the temporary files")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        root = Path(folder)
        n = round(options.gigabytes * 1e9 / (3 * SIDE * SIDE))
        write(root / "images.npy", n)
        few, all_of_them = run(root, ("--loader_args", "rows=1000")), run(root)
        on_disk = (root / "images.npy").stat()
        print(f"{n:,} images, {on_disk.st_size / 1e9:.1f} GB, of which {on_disk.st_blocks * 512 / 1e9:.1f} GB are not holes")
        for name, summary in (("1,000 of them", few), ("all", all_of_them)):
            print(f"{name:14} {summary['peak_memory_mb']:7,.0f} MiB resident at most, test accuracy {summary['acc_test']:.3f}")


if __name__ == "__main__":
    main()

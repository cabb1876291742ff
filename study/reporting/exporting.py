"""`experiment.py export`: the selected weights of a run for other programs, with a card that says what they are."""

import contextlib
import importlib.util
import json
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from helper.schema.config import Config, FlagError, digest, flag
from helper.system.files import hash_of_file, write_atomic
from helper.system.locks import exclusive
from helper.system.sizes import in_words
from helper.untrusted.reasons import Unfit
from helper.untrusted.texts import one_line, shown
from loader.main import published_sizes
from network.main import build_network
from optim.config import RunConfig
from optim.consent import consent, trust_flag
from optim.folder import RunFolder
from optim.model import Stored, load_stored, restore, stored_config
from study.bias import BIAS_NOTE
from study.reporting.facts import command_of, facts_of
from study.reporting.finished_run import FinishedRun
from study.reporting.showing import opened
from study.reporting.unreliable import UNRELIABLE, UNRELIABLE_NOTE
from study.weights_files import write_csr, write_dense

ORIGIN = "export.json"  # in an export: of which run it is; written first
WEIGHTS, MASK, ONNX, CARD, FLAGS = "model.safetensors", "mask.safetensors", "model.onnx", "card.md", "config.yaml"
ONNX_PACKAGES = ("onnx", "onnxscript")
OURS = {ORIGIN, WEIGHTS, MASK, ONNX, CARD, FLAGS, ".lock"}


@dataclass(frozen=True)
class ExportConfig(Config):
    """Export: in which form."""

    weights: str = flag("dense", "pruned weights as zeros, or left out: CSR arrays", choices=("dense", "csr"))
    onnx: bool = flag(True, f"also {ONNX}, where the packages {' and '.join(ONNX_PACKAGES)} are installed")
    trust_code: bool = trust_flag()


def export(config: ExportConfig, run: str, folder: str) -> int:
    """Write the selected weights of a finished run, its mask, its flags and a card into a folder.

    Raises:
        RuntimeError: the run is not finished or damaged, or the folder holds something else than an export of it.
    """
    origin, target = RunFolder(Path(run)), Path(folder)
    options = stored_config(origin)
    if not origin.finished:
        raise RuntimeError(f"{origin.path} is not finished; run it to its end first")
    record, stored = opened(origin), load_stored(origin.model)
    if config.weights == "csr" and not stored.mask:
        raise FlagError(f"--weights csr: {origin.path} has no mask, and nothing to leave out")
    check_target(target, record)
    target.mkdir(parents=True, exist_ok=True)
    with exclusive(target):
        write_atomic(target / ORIGIN, json.dumps({"run": record.name, "identity": digest(record.identity)}) + "\n")
        write_weights(target, record, stored, config.weights)
        write_atomic(target / FLAGS, origin.config.read_bytes())
        words = onnx_or_why_not(target, options, origin, config) if config.onnx else ""
        if words or not config.onnx:
            (target / ONNX).unlink(missing_ok=True)  # of an earlier export
        write_atomic(target / CARD, card_of(record, options, target))
        (target / ".lock").unlink()  # the folder is for others
    if words:
        print(f"experiment.py: {one_line(words)}", file=sys.stderr)
    for name in written(target):
        print(f"{name}: {in_words((target / name).stat().st_size)}")
    print(shown(target))
    return 0


def check_target(target: Path, record: FinishedRun) -> None:
    """Raise RuntimeError unless a folder is not there, empty, or an earlier export of the same run."""
    if target.exists() and not target.is_dir():
        raise RuntimeError(f"{target} is no folder; choose another one for the export")
    found = {path.name for path in target.iterdir()} if target.exists() else set()
    if not found - {".lock"}:
        return
    if origin_of(target) != digest(record.identity) or found - OURS:
        raise RuntimeError(f"{target} is not empty, and no export of {record.name}; choose another folder")


def origin_of(target: Path) -> str | None:
    """Hash of the run of which a folder is an export; None: it is none."""
    try:
        return json.loads((target / ORIGIN).read_text())["identity"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None


def write_weights(target: Path, record: FinishedRun, stored: Stored, how: str) -> None:
    about = {"run": record.name, "identity": digest(record.identity), "epoch": str(stored.epoch)}
    try:
        if how == "csr":
            write_csr(target / WEIGHTS, stored.weights, stored.mask, about)
        else:
            write_dense(target / WEIGHTS, stored.weights, about)
    except Unfit as error:
        raise RuntimeError(f"{record.path / 'model.pt'}: {error}; export it with --weights dense") from None
    if stored.mask:
        write_dense(target / MASK, stored.mask, about)
    else:
        (target / MASK).unlink(missing_ok=True)


def onnx_or_why_not(target: Path, options: RunConfig, origin: RunFolder, config: ExportConfig) -> str:
    """Write the network for any number of examples; why that cannot be, in one line, or nothing."""
    try:
        consent(options, origin.path, trust_code=config.trust_code)
    except FlagError as error:
        return f"no {ONNX}: {error}"
    missing = [name for name in ONNX_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        return f"no {ONNX}: pip install {' '.join(missing)}, or --onnx 0"
    sizes = published_sizes(options.data)
    network = build_network(options.network, sizes.input_shape, sizes.n_classes, torch.Generator())
    restore(network, origin.model)
    unfinished = target / f".{ONNX}.new"
    try:
        with quiet():
            torch.onnx.export(
                network.eval(), (torch.zeros(2, *sizes.input_shape),), unfinished, input_names=["inputs"],
                output_names=["logits"], dynamic_shapes=({0: torch.export.Dim("batch")},), external_data=False, verbose=False,
            )  # fmt: skip
    except torch.onnx.OnnxExporterError as error:
        return f"no {ONNX}: PyTorch cannot write this network as ONNX ({one_line(error, 200)}); --onnx 0 leaves it out"
    os.replace(unfinished, target / ONNX)
    return ""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what the libraries that write ONNX say of their own steps and parts."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def written(target: Path) -> list[str]:
    return sorted(path.name for path in target.iterdir() if path.name in OURS - {".lock"})


def card_of(record: FinishedRun, options: RunConfig, target: Path) -> str:
    """Markdown: what the files are, how they are read, and what is known of the run."""
    weights: dict[str, Any] = {name: hash_of_file(target / name) for name in (WEIGHTS, MASK, ONNX) if (target / name).exists()}
    lines = [f"# {one_line(record.name)}", "", "| file | SHA-256 |", "|---|---|"]
    lines += [f"| {name} | {sha} |" for name, sha in weights.items()]
    lines += ["", "The run again:", "", "```", shown(command_of(options)), "```"]
    for part in facts_of(record):
        lines += ["", f"## {part.heading}", "", "| | |", "|---|---|"]
        lines += [f"| {in_cell(name)} | {in_cell(text)} |" for name, text in part.rows]
    text = "\n".join(lines)
    notes = [note for note, there in ((BIAS_NOTE, record.biased), (UNRELIABLE_NOTE, UNRELIABLE in text)) if there]
    return "\n\n".join([text, *notes]) + "\n"


def in_cell(text: str) -> str:
    return one_line(text, 4000).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")

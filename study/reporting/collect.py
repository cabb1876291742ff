"""Run folders -> finished runs, and what was left out, with the reason."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helper.progress import tracked
from helper.schema.config import digest, flatten
from helper.tables import DamagedTable
from helper.untrusted.reasons import Unfit, reason_of
from optim.folder import RunFolder
from optim.model import stored_config
from optim.modes import MODES
from study.reporting.finished_run import TABLES, FinishedRun, rows_of, with_dense_runs

EXAMPLES = ("train", "val", "test", "clean", "mislabelled")  # of which summary.json has the number
NUMBERS = (
    "acc_train", "acc_val", "acc_test", "loss_train", "loss_val", "loss_test", "acc_clean", "acc_generalized", "acc_memorized",
    "sparsity_achieved", "training_macs", "training_macs_dense", "training_macs_with_parents",
)  # fmt: skip

UNREADABLE = (OSError, RuntimeError, ValueError, LookupError, TypeError, AttributeError, OverflowError)  # of damaged files


@dataclass(frozen=True)
class Collection:
    """The finished runs under a results root, and what was left out, with the reason."""

    root: Path
    records: tuple[FinishedRun, ...]
    left_out: list[tuple[str, str]]


def collect(root: Path) -> Collection:
    """Every finished run under a results root. Folders that are none, and damaged files, are listed with the reason."""
    records, left_out, seen = [], [], {}
    for path in tracked(run_paths(root), "reading runs", "runs"):
        name = path.relative_to(root).as_posix()
        folder = RunFolder(path)
        if not folder.summary.is_file():
            left_out.append((name, "not finished"))
            continue
        try:
            record = finished_run(folder, name)
            folder.check_files()
            key = (record.data, record.study, digest(record.identity))
        except UNREADABLE as error:
            left_out.append((name, why_left_out(folder, error)))
            continue
        if key in seen:
            left_out.append((name, f"the same run as {seen[key]}"))
            continue
        seen[key] = name
        records.append(record)
        left_out += [(f"{name}/{table}.csv", why) for table, why in damaged_tables(path)]
    return Collection(root, tuple(with_dense_runs(records)), left_out)


def run_paths(root: Path) -> list[Path]:
    """The folders under a results root that have a summary or a configuration, in the order of their names."""
    return sorted(
        {file.parent for kind in ("summary.json", "config.yaml") for file in root.glob(f"*/*/*/*/{kind}") if file.is_file()}
    )


def finished_run(folder: RunFolder, name: str) -> FinishedRun:
    """By its configuration and its summary; its other files are not looked at. Raises one of UNREADABLE: they are damaged."""
    return FinishedRun(folder.path, name, flatten(stored_config(folder)), summary_of(folder))


def why_left_out(folder: RunFolder, error: Exception) -> str:
    """A sentence with file and cure."""
    if isinstance(error, RuntimeError):
        return " ".join(str(error).split())
    path = getattr(error, "filename", None) or folder.summary
    return f"{path} is damaged: {reason_of(error)}; remove it, and the run's command makes it again"


def damaged_tables(path: Path) -> list[tuple[str, str]]:
    found = []
    for table, columns in TABLES.items():
        try:
            if (path / f"{table}.csv").is_file():
                rows_of(path / f"{table}.csv", columns)
        except DamagedTable as error:
            found.append((table, f"damaged: {error}; the run's other files are used, put a copy of it back"))
    return found


def summary_of(folder: RunFolder) -> dict[str, Any]:
    """summary.json, if it has what a report needs. Raises ValueError, KeyError, TypeError when it is damaged."""
    summary = folder.read_summary()
    needed = ("epoch_selected", "acc_train", "acc_test", "macs_active", "macs_dense", "sparsity_requested")
    given = {name: summary[name] for name in NUMBERS if summary.get(name) is not None}
    counts = {**summary.get("seconds", {}), **summary.get("examples", {}), "n_classes": summary.get("n_classes", 0)}
    for name, value in {**{name: summary[name] for name in needed}, **given, **counts}.items():
        if not isinstance(value, float) and (type(value) is not int or abs(value) >= 2**63):
            raise Unfit(f"{name} is no number of a run")
    dict(summary["identity"]), [float(share) for share in summary.get("sparsity_by_layer", {}).values()]
    for found in summary["metrics"].values():
        float(found["value"]), float(found["standard_error"]), [found[how] + "" for how in ("estimator", "params", "split")]
        float(found.get("of_sample", 0))
    if summary["mode"] not in MODES:
        raise Unfit(f"mode {summary['mode']!r} is none of {', '.join(MODES)}")
    return summary

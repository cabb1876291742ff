"""What there is to say of a run, as headed lists of (what, text): for a terminal and for the card of an export."""

import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from helper.interval import half_interval
from helper.schema.config import all_flags, flatten
from optim.config import RunConfig
from study.bias import marked
from study.digits import digits
from study.reporting.finished_run import FinishedRun
from study.reporting.tidy import epochs_of
from study.reporting.unreliable import doubted

LEFT_OUT = ("overwrite", "debug", "load_pretrain", "results_root")  # of a command: how an existing run is treated, and where
ACCURACIES = {
    "acc_train": "train", "acc_val": "val", "acc_test": "test", "acc_clean": "clean", "acc_generalized": "mislabelled",
    "acc_memorized": "mislabelled",
}  # fmt: skip


@dataclass(frozen=True)
class Facts:
    """A heading, and what stands below it."""

    heading: str
    rows: tuple[tuple[str, str], ...]


def facts_of(record: FinishedRun) -> list[Facts]:
    """Of a finished run; what its summary does not have is not mentioned."""
    parts = [
        ("Run", whole_run(record)), ("Settings that are not the default", settings_of(record.flags)),
        ("Accuracy", accuracies(record)), ("Sparsity", sparsity(record)), ("Cost", cost(record)),
        ("Measured", measurements(record)), ("Made with", made(record)),
    ]  # fmt: skip
    return [Facts(heading, rows) for heading, found in parts if (rows := tuple(found))]


def whole_run(record: FinishedRun) -> Iterable[tuple[str, str]]:
    yield "run", record.name
    yield "method", record.family.label
    yield "epochs", str(epochs_of(record))
    yield "selected", f"epoch {record.summary['epoch_selected']} (--select {record.flags['select']})"


def settings_of(flags: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    return tuple((name, word(value)) for name, value in changed(flags).items())


def accuracies(record: FinishedRun) -> Iterable[tuple[str, str]]:
    examples = record.summary.get("examples", {})
    for name, which in ACCURACIES.items():
        if record.summary.get(name) is not None:
            text = marked(digits(float(record.summary[name])), name == "acc_test" and record.biased)
            yield name, f"{text} of {examples[which]:,} examples" if which in examples else text
    for name in ("loss_train", "loss_val", "loss_test"):
        if record.summary.get(name) is not None:
            yield name, f"{digits(float(record.summary[name]))} nats"


def sparsity(record: FinishedRun) -> Iterable[tuple[str, str]]:
    if not record.mode_spec.has_mask:
        return
    yield "asked for", digits(float(record.summary["sparsity_requested"]))
    achieved = record.summary.get("sparsity_achieved")
    if achieved is not None:
        yield "achieved", digits(float(achieved))
    for layer, share in record.summary.get("sparsity_by_layer", {}).items():
        yield layer, digits(float(share))


def cost(record: FinishedRun) -> Iterable[tuple[str, str]]:
    summary = record.summary
    for name, of in (("parameters", "parameters_{}"), ("multiply-accumulates of a forward pass", "macs_{}")):
        active, dense = (summary.get(of.format(which)) for which in ("active", "dense"))
        if active is not None and dense:
            yield name, f"{active:,} of {dense:,} ({digits(active / dense)})"
    training, dense = summary.get("training_macs"), summary.get("training_macs_dense")
    if training is not None:
        share = f" ({digits(training / dense)} of what the same steps take without a mask)" if dense else ""
        yield "multiply-accumulates of training", f"{digits(float(training))}{share}"
    if summary.get("training_macs_with_parents") is not None:
        yield "with all runs that it needs", digits(float(summary["training_macs_with_parents"]))
    for name, seconds in summary.get("seconds", {}).items():
        yield f"seconds of {name}", digits(float(seconds))
    if isinstance(summary.get("peak_memory_mb"), int | float):
        yield "peak memory", f"{digits(float(summary['peak_memory_mb']))} MB"


def measurements(record: FinishedRun) -> Iterable[tuple[str, str]]:
    """With half of their 95 % intervals, as the report has them."""
    for name, found in record.summary["metrics"].items():
        spread = (float(found.get("degrees", "inf")), float(found.get("skewness", 0.0)))
        half = half_interval(float(found["standard_error"]), *spread)
        text = doubted(f"{digits(float(found['value']))} ± {half:.2g}", found.get("reliable") == 0)
        yield name, f"{text} ({', '.join(filter(None, (found['estimator'], found['params'], found['split'])))})"


def made(record: FinishedRun) -> Iterable[tuple[str, str]]:
    yield "data files", data_files(record)
    versions = record.summary.get("versions")
    if isinstance(versions, dict):
        yield "versions", ", ".join(f"{name} {version}" for name, version in versions.items())
    git = record.summary.get("git")
    if isinstance(git, dict) and git.get("commit"):
        yield "commit", f"{git['commit']}{', with changes' if git.get('dirty') else ''}"
    yield "device", str(record.summary.get("device", record.flags["device"]))


def data_files(record: FinishedRun) -> str:
    """By their content hash, which the run's identity has wherever they are not those that were published."""
    found = record.identity.get("data_files")
    return f"content hash {found}" if found else "as published, by their checksums"


def changed(flags: dict[str, Any]) -> dict[str, Any]:
    """The flags of a run that act and are not as they are by default."""
    fields = all_flags(RunConfig)
    return {
        name: value
        for name, value in flags.items()
        if name not in LEFT_OUT
        and value is not None
        and value != fields[name].default
        and fields[name].metadata["flag"].acts(flags)
    }


def command_of(config: RunConfig) -> str:
    """The line that runs it again."""
    words = [part for name, value in changed(flatten(config)).items() for part in (f"--{name}", word(value))]
    return shlex.join(["python", "run.py", *words])


def word(value: Any) -> str:
    """A flag's value as one writes it."""
    return str(int(value)) if isinstance(value, bool) else str(value)

#!/usr/bin/env python
"""Everything over finished runs. `compare`: one table and one figure over all runs under a results folder."""

import json
import logging
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas
import yaml

from helper.config import Config, FlagError, flag, near_match, parse_line, unflatten
from helper.metrics.main import MetricConfig
from helper.plotter import draw_comparison
from helper.utils import one_line_errors
from optim.folder import RunFolder
from optim.main import RunConfig
from study.measure import MeasureConfig, measure
from study.sweep import SweepConfig, sweep


@dataclass(frozen=True)
class Command:
    """What a word of the command line does: `action(config, *words, **lists)`, see `helper.config.parse_line`."""

    config: type
    action: Callable[..., int | None]
    words: str = ""
    lists: type | None = None


@dataclass(frozen=True)
class CompareConfig(Config):
    """Comparison: which runs."""

    results_root: str = flag("results", "folder of all run folders", short="-rr")


def compare(config: CompareConfig) -> None:
    """Print mean ± standard deviation over seeds for every setting; write comparison.csv and comparison.png beside them."""
    root = Path(config.results_root)
    runs = collect(root)
    if runs.empty:
        sys.exit(f"experiment.py: error: no finished run under {root}; train some with run.py")
    table = over_seeds(runs)
    with pandas.option_context("display.width", 250, "display.max_columns", None, "display.max_colwidth", 60):
        print(shown(table).to_string(index=False))
    print("± standard deviation over seeds; of a measurement on a single seed, its standard error")
    table.to_csv(root / "comparison.csv", index=False)
    draw_comparison(table, root / "comparison")
    print(root / "comparison.png")


def collect(root: Path) -> pandas.DataFrame:
    """One row a finished run: its settings but the seed, as one text, and the numbers of summary.json."""
    rows = []
    for path in sorted(root.glob("*/*/*/*/summary.json")):
        folder = RunFolder(path.parent)
        try:
            rows.append(row_of(folder.read_summary(), unflatten(RunConfig, yaml.safe_load(folder.config.read_text()))))
        except (OSError, KeyError, TypeError, ValueError, yaml.YAMLError) as error:
            print(f"left out {folder.path}: {type(error).__name__} {error}", file=sys.stderr)
    return pandas.DataFrame(rows)


def row_of(summary: dict[str, Any], run: RunConfig) -> dict[str, Any]:
    options = without_seeds(summary["identity"])
    how = {name: " ".join((m["estimator"].split(";")[0], m["params"], m["split"])) for name, m in summary["metrics"].items()}
    return {
        "data": run.data.loader_name,
        "network": run.network.label,
        "mode": run.mode,
        "sparsity": summary["sparsity_requested"],
        "options": json.dumps(options | {f"{name}_by": text for name, text in how.items()}, sort_keys=True),
        "acc_train": summary["acc_train"],
        "acc_test": summary["acc_test"],
        **{name: estimate["value"] for name, estimate in summary["metrics"].items()},
        **{f"{name}_error": estimate["standard_error"] for name, estimate in summary["metrics"].items()},
    }


def without_seeds(identity: dict[str, Any]) -> dict[str, Any]:
    """The identity of a run, and of its parent, but for the training seed."""
    kept = {key: value for key, value in identity.items() if key != "random_state"}
    return kept | {"parent": without_seeds(kept["parent"])} if isinstance(kept.get("parent"), dict) else kept


def over_seeds(runs: pandas.DataFrame) -> pandas.DataFrame:
    """Mean and standard deviation (ddof 1, nan for one seed) of every number over runs that differ in their seeds only."""
    keys = ["data", "network", "mode", "sparsity", "options"]
    numbers = [column for column in runs if column not in keys]
    groups = runs.groupby(keys, sort=False)
    table = groups[numbers].agg(["mean", "std"])
    table.columns = ["_".join(column) for column in table.columns]
    table.insert(0, "seeds", groups.size())
    order = {"dense": 0, "sparse-finetune": 1, "sparse-scratch": 2, "lottery": 3}
    by = ["data", "network", "sparsity", "mode"]
    return table.reset_index().sort_values(by, key=lambda column: column.map(lambda v: order.get(v, v)), kind="stable")


def shown(table: pandas.DataFrame) -> pandas.DataFrame:
    """Texts `mean ± standard deviation over seeds`, for one seed a measurement's `value ± standard error`.

    With the options in which rows of the table differ.
    """
    options = [json.loads(text) for text in table["options"]]
    groups = table.groupby(["data", "network", "mode"]).indices.values()
    varying = sorted(set().union(*(differing(options, rows) for rows in groups)))
    text = table[["data", "network", "mode", "sparsity", "seeds"]].copy()
    for name in [column.removesuffix("_mean") for column in table if column.endswith("_mean")]:
        if not name.endswith("_error"):
            errors = table.get(f"{name}_error_mean", table[f"{name}_std"])
            spread = table[f"{name}_std"].where(table["seeds"] > 1, errors)
            digits = "{:.3f}" if name.startswith("acc") else "{:.3g}"
            text[name] = [with_error(digits, *pair) for pair in zip(table[f"{name}_mean"], spread, strict=True)]
    if varying:
        text["with"] = [", ".join(f"{key} {o[key]}" for key in varying if key in o) for o in options]
    return text


def with_error(digits: str, value: float, error: float) -> str:
    if pandas.isna(value):
        return ""
    return digits.format(value) + ("" if pandas.isna(error) else f" ± {digits.format(error)}")


def differing(options: list[dict[str, Any]], rows: Iterable[int]) -> set[str]:
    """Options other than the sparsity in which some rows differ; an absent one has its default."""
    chosen = [options[row] for row in rows]
    return {key for key in set().union(*chosen) - {"prune_ratio"} if len({json.dumps(o.get(key)) for o in chosen}) > 1}


COMMANDS: dict[str, Command] = {
    "sweep": Command(SweepConfig, sweep, words="FILE", lists=RunConfig),
    "measure": Command(MeasureConfig, measure, words="RUN...", lists=MetricConfig),
    "compare": Command(CompareConfig, compare),
}


def main(argv: list[str] | None = None) -> None:
    words = sys.argv[1:] if argv is None else argv
    if words[:1] == ["--debug"]:
        words = words[1:]
    else:
        sys.excepthook = one_line_errors("experiment.py")
    name = words[0] if words else "--help"
    if name in ("-h", "--help"):
        print(f"usage: experiment.py {{{','.join(COMMANDS)}}} [flags]\n\n{__doc__}")
        return
    if name not in COMMANDS:
        print(f"experiment.py: error: {name}: no such command{near_match(name, COMMANDS)}", file=sys.stderr)
        sys.exit(2)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    command = COMMANDS[name]
    line = parse_line(
        command.config, words[1:], prog=f"experiment.py {name}", description=command.action.__doc__, retired={},
        words=command.words, lists=command.lists,
    )  # fmt: skip
    try:
        sys.exit(command.action(line.config, *line.words, **line.lists))
    except FlagError as error:
        print(f"experiment.py: error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()

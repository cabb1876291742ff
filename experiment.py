#!/usr/bin/env python
"""Everything over many runs: sweeps, measurements and comparisons of saved states, the report."""

import importlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass

from helper.system.collector import imports_are_done
from helper.system.signals import EXIT_INTERRUPTED, Interrupted, Signals, end_at_once
from helper.system.threads import brief_spins

if __name__ == "__main__":
    end_at_once("experiment.py")  # before the imports, which take seconds
os.environ.update(brief_spins(os.environ))  # before torch is loaded

from helper.command_line.help import Usage, page_width, section
from helper.command_line.parsing import parse
from helper.metrics.config import MetricConfig
from helper.processes.interruption import interruptible
from helper.schema.config import Config, FlagError
from helper.schema.values import near_match
from helper.system.errors import one_line_errors
from helper.system.logs import log_to_stderr
from helper.untrusted.texts import one_line
from optim.config import RunConfig

imports_are_done()


@dataclass(frozen=True)
class Command:
    """What a word of the command line does: `action(config, *words, **lists)`, see `helper.command_line.parsing`.

    Module and names are texts because a module is imported when its command is given: figures take a second to load.
    """

    module: str
    config: str
    action: str
    words: str
    what: str
    example: str
    lists: type[Config] | None = None
    about_lists: str = ""

    def load(self) -> tuple[type[Config], Callable[..., object]]:
        """(configuration class, action); an int that the action returns is the exit code."""
        module = importlib.import_module(self.module)
        return getattr(module, self.config), getattr(module, self.action)

    def usage(self, name: str) -> Usage:
        example = f"python experiment.py {name} {self.example}"
        return Usage(f"experiment.py {name}", self.what, example, self.words, self.lists, self.about_lists)


COMMANDS: dict[str, Command] = {
    "sweep": Command(
        "study.sweeping.sweep", "SweepConfig", "sweep", "FILE...",
        "Runs whatever YAML files of flags and grids describe, each run once, here or in SLURM; or says what it takes.",
        "scripts/paper/small/figure1.yaml --jobs 2 --dry_run", lists=RunConfig,
        about_lists="Flags of run.py: each takes one value or several with commas between, and the place of the files' values.",
    ),
    "power": Command(
        "study.sweeping.power", "PowerConfig", "power", "RUN...",
        "Says how many seeds and test images show a gap of some size with 80 % power, by the seeds there are, and their price.",
        "results/digits/mlp-128-64/sparse-*/* --gap 0.01",
    ),
    "status": Command(
        "study.sweeping.status", "StatusConfig", "status", "RESULTS_ROOT",
        "Says which runs of a results root are queued, running, finished, failed, damaged; changes nothing.", "results",
    ),
    "list": Command(
        "study.reporting.listing", "ListConfig", "list_runs", "RESULTS_ROOT",
        "Lists the finished runs of a results root with their numbers, those that fulfil a condition, in some order.",
        "results --where 'sparsity > 0.9' --sort acc_test",
    ),
    "show": Command(
        "study.reporting.showing", "ShowConfig", "show", "RUN",
        "Shows one run: settings, accuracies, sparsity, cost, measurements, files, the command that repeats it.",
        "results/digits/mlp-128-64/dense/RUN",
    ),
    "export": Command(
        "study.reporting.exporting", "ExportConfig", "export", "RUN DIR",
        "Writes the selected weights of a run as safetensors, with mask, card of its numbers, and ONNX where that is there.",
        "results/digits/mlp-128-64/dense/RUN exported --weights csr",
    ),
    "remove": Command(
        "study.removal", "RemoveConfig", "remove", "RUN...",
        "Removes runs with all of their files, after asking; none that is under way, or that another one needs.",
        "results/digits/mlp-128-64/dense/RUN --children 1",
    ),
    "measure": Command(
        "study.measure", "MeasureConfig", "measure", "RUN...",
        "Measures Fisher, Hessian, Jacobian, SNR, spectrum of saved states; what was measured before is not repeated.",
        "results/digits/mlp-128-64/dense/* --metrics fisher,hessian --epochs all", lists=MetricConfig,
        about_lists="How it is measured; what is not given here is as in the run's own settings.",
    ),
    "interpolate": Command(
        "study.comparing.interpolation", "InterpolateConfig", "interpolate", "RUN_SCRATCH RUN_FINETUNE",
        "Follows loss and accuracy on the line between two solutions: barrier, cosines of examples (figures 6-8).",
        "results/digits/mlp-128-64/sparse-scratch/RUN results/digits/mlp-128-64/sparse-finetune/RUN",
    ),
    "disagree": Command(
        "study.comparing.disagreement", "DisagreeConfig", "disagree", "RUN_A RUN_B",
        "Shows where the predictions of two runs differ, by class and by image (figures 9, 10).",
        "results/digits/mlp-128-64/dense/RUN results/digits/mlp-128-64/sparse-finetune/RUN",
    ),
    "memorisation": Command(
        "study.comparing.memorisation", "MemorisationConfig", "memorise", "RUN...",
        "Finds out which training examples are memorised, and which of them sparse networks forget, over runs on many subsets.",
        "results/memorisation_small/digits/mlp-256/*/*",
    ),
    "report": Command(
        "study.reporting.report", "ReportConfig", "report", "RESULTS_ROOT",
        "Makes tables with intervals, the paper's figures and one HTML page of all runs of a results root.", "results",
    ),
}  # fmt: skip


def help_text(width: int) -> str:
    head = ["Trains, measures, compares and reports many runs.", "", "  python experiment.py report results", ""]
    head.append("usage: experiment.py [--debug] COMMAND ...; COMMAND --help lists its flags")
    return "\n".join([*head, *section("Commands", [(name, command.what) for name, command in COMMANDS.items()], width)])


def main(argv: list[str] | None = None) -> None:
    words = sys.argv[1:] if argv is None else argv
    if words[:1] == ["--debug"]:
        words = words[1:]
    else:
        sys.excepthook = one_line_errors("experiment.py")
    name = words[0] if words else "--help"
    if name in ("-h", "--help"):
        print(help_text(page_width()))
        return
    if name not in COMMANDS:
        print(f"experiment.py: error: {one_line(name)}: no such command{near_match(name, COMMANDS)}", file=sys.stderr)
        sys.exit(2)
    log_to_stderr()
    config, action = COMMANDS[name].load()
    line = parse(config, COMMANDS[name].usage(name), words[1:])
    try:
        with Signals() as signals, interruptible(signals):
            code = action(line.config, *line.words, **line.lists)
    except Interrupted as stop:
        print(f"experiment.py: {stop}", file=sys.stderr)
        code = EXIT_INTERRUPTED
    except FlagError as error:
        print(f"experiment.py: error: {one_line(error)}", file=sys.stderr)
        code = 2
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()

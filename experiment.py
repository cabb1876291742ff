#!/usr/bin/env python
"""Everything over many runs.

sweep        all runs of YAML files of flags and grids, here or in SLURM, each once; or what they would take
status       which runs of a results root are queued, running, finished, failed
measure      Fisher, Hessian, Jacobian, SNR, spectrum of saved states
interpolate  loss and accuracy on the line between two solutions, barrier, per-example cosines (figures 6-8)
disagree     where the predictions of two runs differ, by class and by image (figures 9, 10)
report       tables with intervals, the paper's figures and one HTML page over all runs of a results root
"""

import importlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass

from helper.threads import brief_spins

os.environ.update(brief_spins(os.environ))  # before torch is loaded

from helper.config import FlagError, near_match, parse_line
from helper.metrics.main import MetricConfig
from helper.untrusted import one_line
from helper.utils import log_to_stderr, one_line_errors
from optim.main import RunConfig


@dataclass(frozen=True)
class Command:
    """What a word of the command line does: `action(config, *words, **lists)`, see `helper.config.parse_line`.

    Module and names are texts because a module is imported when its command is given: figures take a second to load.
    """

    module: str
    config: str
    action: str
    words: str
    lists: type | None = None

    def load(self) -> tuple[type, Callable[..., object]]:
        """(configuration class, action); an int that the action returns is the exit code."""
        module = importlib.import_module(self.module)
        return getattr(module, self.config), getattr(module, self.action)


COMMANDS: dict[str, Command] = {
    "sweep": Command("study.sweep", "SweepConfig", "sweep", "FILE...", lists=RunConfig),
    "status": Command("study.status", "StatusConfig", "status", "RESULTS_ROOT"),
    "measure": Command("study.measure", "MeasureConfig", "measure", "RUN...", lists=MetricConfig),
    "interpolate": Command("study.interpolation", "InterpolateConfig", "interpolate", "RUN_SCRATCH RUN_FINETUNE"),
    "disagree": Command("study.disagreement", "DisagreeConfig", "disagree", "RUN_A RUN_B"),
    "report": Command("study.report", "ReportConfig", "report", "RESULTS_ROOT"),
}


def main(argv: list[str] | None = None) -> None:
    words = sys.argv[1:] if argv is None else argv
    if words[:1] == ["--debug"]:
        words = words[1:]
    else:
        sys.excepthook = one_line_errors("experiment.py")
    name = words[0] if words else "--help"
    if name in ("-h", "--help"):
        print(f"usage: experiment.py [--debug] {{{','.join(COMMANDS)}}} ...\n\n{__doc__}\nCOMMAND --help lists its flags.")
        return
    if name not in COMMANDS:
        print(f"experiment.py: error: {one_line(name)}: no such command{near_match(name, COMMANDS)}", file=sys.stderr)
        sys.exit(2)
    log_to_stderr()
    command = COMMANDS[name]
    config, action = command.load()
    line = parse_line(
        config, words[1:], prog=f"experiment.py {name}", description=action.__doc__, retired={}, words=command.words,
        lists=command.lists,
    )  # fmt: skip
    try:
        code = action(line.config, *line.words, **line.lists)
    except FlagError as error:
        print(f"experiment.py: error: {one_line(error)}", file=sys.stderr)
        code = 2
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()

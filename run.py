#!/usr/bin/env python
"""Flags -> configuration -> one trained and measured run. The last line printed is the run folder."""

import os
import sys
from typing import NoReturn

from helper.system.collector import imports_are_done
from helper.system.signals import EXIT_INTERRUPTED, Interrupted, Signals, end_at_once
from helper.system.threads import brief_spins

if __name__ == "__main__":
    end_at_once("run.py")  # before the imports, which take seconds
os.environ.update(brief_spins(os.environ))  # before torch is loaded

from helper.command_line.effects import refuse_misplaced, without_effect
from helper.command_line.help import Usage
from helper.command_line.parsing import CommandLine, parse
from helper.processes.first import broadcast_from_first
from helper.processes.group import join_processes, n_launched, only_first_prints, rank
from helper.progress import lines_above_bars
from helper.schema.config import FlagError
from helper.system.errors import one_line_errors
from helper.system.logs import log_to_stderr
from helper.untrusted.texts import one_line
from loader.main import load_dataset
from optim.config import RunConfig
from optim.consent import code_named
from optim.main import train_run

imports_are_done()

RETIRED = {
    "ree": "resuming is automatic; run the same command again",
    "resume_epoch": "resuming is automatic; run the same command again",
    "nj": "the data set is in memory and needs no loader workers; leave the flag out",
    "n_jobs_dataloader": "the data set is in memory and needs no loader workers; leave the flag out",
}
USAGE = Usage(
    "run.py", "Trains a dense or a sparse network and measures its gradients and its curvature; prints the run's folder.",
    "python run.py --mode sparse-finetune --prune_ratio 0.95", retired=RETIRED,
)  # fmt: skip
EXIT_WRONG_FLAGS = 2


def main(argv: list[str] | None = None) -> None:
    with Signals() as signals:  # before anything is printed: who reads a line may ask for an end
        run(argv, signals)


def hold(words: list[str]) -> None:
    """Load the data that some flags name, for the runs that are forked from this process and name the same."""
    load_dataset(parse(RunConfig, USAGE, words).config.data)


def run(argv: list[str] | None, signals: Signals) -> None:
    sys.excepthook = one_line_errors("run.py")
    with only_first_prints():
        line = parse(RunConfig, USAGE, argv)
        config = line.config
        try:
            refuse_code_of_files(line)
            refuse_misplaced([config], line.given, n_launched())
        except FlagError as error:
            refuse(error)
        for words in without_effect(config, line.given, n_launched()):
            print(f"run.py: {one_line(words)}", file=sys.stderr)
    log_to_stderr()
    if config.debug:
        sys.excepthook = sys.__excepthook__
    try:
        signals.answer()  # before others wait for this process
        with lines_above_bars(), join_processes(config.device):
            folder = train_run(broadcast_from_first(lambda: config), signals)  # one seed where each process has drawn its own
            speaks = rank() == 0
    except FlagError as error:
        refuse(error)
    except Interrupted as stop:
        print(f"run.py: {stop}", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
    if speaks:
        print(folder)


def refuse_code_of_files(line: CommandLine) -> None:
    """Raise FlagError where a --config file alone names code, unless the command line trusts it."""
    of_files = [f"--{name} {word}" for name, word in code_named(line.config).items() if name not in line.typed]
    if of_files and not (line.config.trust_code and "trust_code" in line.typed):
        raise FlagError(
            f"{' and '.join(of_files)}: is code that a --config file names, and is not run unasked: look at it, then add "
            "--trust_code 1"
        )


def refuse(error: FlagError) -> NoReturn:
    print(f"run.py: error: {one_line(error)}", file=sys.stderr)
    sys.exit(EXIT_WRONG_FLAGS)


if __name__ == "__main__":
    main()

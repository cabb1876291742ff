#!/usr/bin/env python
"""Whether this version of the program does what an older one does: the same runs by both, compared to the bit.

    bash scripts/compare_versions.sh OLD_CHECKOUT [--results DIR] [--only NAME...]

Every run of scripts/version_runs.py is made by the program in OLD_CHECKOUT and by the one that this file lies in, two
processes at a time, of one thread each, and what they leave is compared (scripts/version_files.py): names of folders, weights,
tables, summaries, settings, labels, spectra, comparisons, tables of the report. Timings may differ. Then this program is given
the same commands on a copy of the old results, where it has to find every run finished and change nothing; it measures one of
them further and says what there is. Columns at the end of a table, keys and files that only the new program writes are listed
and are no failure. Exit code 0: no difference; 1: there are some, a line each.
"""

import argparse
import collections
import concurrent.futures
import contextlib
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts.version_files import Comparison, Finding, below, compare_folders, compare_tables, read_table
from scripts.version_runs import CASES, Case, Failed, Program, write_inputs

ROOT = Path(__file__).resolve().parent.parent
LINES = 12  # differences of one file that are printed
FURTHER = "--metrics fisher --fisher_method exact -ms 50"  # a way in which no run of CASES has been measured


def main() -> int:
    options = parse()
    cases = with_needed(options.only or [case.name for case in CASES])
    with folder_for(options.results) as folder:
        write_inputs(folder)
        old, new = (Program(checkout, folder / name) for checkout, name in ((options.old, "old"), (ROOT, "new")))
        with concurrent.futures.ThreadPoolExecutor(2) as both:
            failed = list(both.map(run_cases, (old, new), (cases, cases)))
        rows = [(case.name, compared(case, old, new, *failed)) for case in cases]
        copy = Program(ROOT, folder / "copy")
        shutil.copytree(old.results, copy.results)
        rows += read_again([case for case in cases if case.name not in failed[0]], old, copy)
    show(rows)
    return int(any(comparison.different for _, comparison in rows))


def parse() -> argparse.Namespace:
    names = ", ".join(case.name for case in CASES)
    words = f"{__doc__}\nRuns: {names}."
    parser = argparse.ArgumentParser(
        "compare_versions.sh", description=words, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("old", metavar="OLD_CHECKOUT", type=Path, help="folder of the older version")
    parser.add_argument("--results", metavar="DIR", type=Path, help="keep the results of both in this empty folder")
    parser.add_argument("--only", metavar="NAME", nargs="+", help="these runs, and those that they need")
    options = parser.parse_args()
    options.old = options.old.resolve()
    for script in ("run.py", "experiment.py"):
        if not (options.old / script).is_file():
            parser.error(f"{options.old} has no {script}; give a checkout of this project")
    for name in options.only or []:
        if name not in {case.name for case in CASES}:
            parser.error(f"--only {name}: none of the runs; they are {names}")
    if options.results and options.results.exists() and (not options.results.is_dir() or any(options.results.iterdir())):
        parser.error(f"--results {options.results} is not an empty folder; what it holds would be compared as well")
    return options


def with_needed(names: Sequence[str]) -> list[Case]:
    """The cases of some names and those that they need, in the order in which they are run."""
    needed = set(names).union(*(case.needs for case in CASES if case.name in names))
    needed = needed.union(*(case.needs for case in CASES if case.name in needed))
    return [case for case in CASES if case.name in needed]


@contextlib.contextmanager
def folder_for(results: Path | None) -> Iterator[Path]:
    """The folder of all results: one that stays, or one that is removed in the end."""
    if results is None:
        with tempfile.TemporaryDirectory(prefix="versions-") as name:
            yield Path(name)
    else:
        results.mkdir(parents=True, exist_ok=True)
        yield results.resolve()


def run_cases(program: Program, cases: Sequence[Case]) -> dict[str, str]:
    """Run cases in order; {name: what went wrong} of those that failed."""
    program.results.mkdir(parents=True)
    failed = {}
    for case in cases:
        try:
            case.run(program)
        except Failed as error:
            failed[case.name] = str(error)
        print(f"{program.place.name}: {case.name} {'failed' if case.name in failed else 'ran'}", file=sys.stderr, flush=True)
    return failed


def compared(case: Case, old: Program, new: Program, old_failed: dict[str, str], new_failed: dict[str, str]) -> Comparison:
    """What both programs left of a case, and how either failed."""
    found = compare_folders(old.results, new.results, case.leaves)
    failures = (("the old program", old_failed), ("the new program", new_failed))
    found.findings += [Finding((name,), failed[case.name]) for name, failed in failures if case.name in failed]
    return found


# ------------------------------------------------------------------------------------------------------ old results


def read_again(cases: Sequence[Case], old: Program, copy: Program) -> list[tuple[str, Comparison]]:
    """This program on a copy of the old results: the same commands, then what it has not been asked for yet."""
    alone, others = [case for case in cases if not case.needs], [case for case in cases if case.needs]
    with concurrent.futures.ThreadPoolExecutor(2) as two:
        failures = list(two.map(repeated, alone, [copy] * len(alone)))
    failures += [repeated(case, copy) for case in others]
    again = compare_folders(old.results, copy.results, [pattern for case in cases for pattern in case.leaves])
    again.findings += [failure for failure in failures if failure]
    roots = sorted({pattern.partition("/")[0] for case in cases for pattern in case.leaves})
    return [
        ("old results, the same commands", again),
        ("old results, measured further", measured_further(old, copy)),
        ("old results, status", status_of(roots, copy)),
    ]


def repeated(case: Case, copy: Program) -> Finding | None:
    try:
        case.repeat(copy)
    except Failed as error:
        return Finding((case.name,), str(error))
    return None


def measured_further(old: Program, copy: Program) -> Comparison:
    """One old run gets further rows, after those that it has."""
    found = Comparison()
    table = next((path.relative_to(old.results) for path in sorted(old.results.glob("*/*/*/*/*/metrics.csv"))), None)
    if table is None:
        found.findings.append(Finding((), "the old program has left no measured run"))
        return found
    try:
        copy.run(f"experiment.py measure results/{table.parent} {FURTHER}")
    except Failed as error:
        found.findings.append(Finding((str(table),), str(error)))
    former, further = ((program.results / table).read_text() for program in (old, copy))
    found.findings += below(table, compare_tables(former, further, may_grow=True))
    if len(read_table(further)[1]) <= len(read_table(former)[1]):
        found.findings.append(Finding((str(table),), "no rows were added"))
    found.counts["tables"] += 1
    return found


def status_of(roots: Sequence[str], copy: Program) -> Comparison:
    """All of the runs under some results roots have to be finished."""
    found = Comparison()
    for root in roots:
        try:
            printed = copy.run(f"experiment.py status results/{root}")
        except Failed as error:
            found.findings.append(Finding((root,), str(error)))
            continue
        line = next((line for line in printed.splitlines() if " runs under " in line), printed)
        if not re.search(r"\b(\d+) runs under .*: \1 finished$", line):
            found.findings.append(Finding((root,), f"not all runs are finished: {line}"))
        found.counts["results roots"] += 1
    return found


# ----------------------------------------------------------------------------------------------------- what is shown


def show(rows: Sequence[tuple[str, Comparison]]) -> None:
    """A line for each case, then one for each difference, then what is new."""
    cells = [("run", "compared", "result"), *((name, counted(found), verdict(found)) for name, found in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(2)]
    for row in cells:
        print(f"{row[0]:{widths[0]}}  {row[1]:{widths[1]}}  {row[2]}")
    for name, found in rows:
        for line in shortened(found.different):
            print(f"differs: {name}: {line}")
    added = collections.Counter(in_any_run(finding) for _, found in rows for finding in found.added)
    for line, times in added.items():
        print(f"added: {line}" + (f" ({times} times)" if times > 1 else ""))


def counted(found: Comparison) -> str:
    return ", ".join(f"{kind} {n}" for kind, n in sorted(found.counts.items()))


def verdict(found: Comparison) -> str:
    if found.different:
        return "differs"
    return "equal, with additions" if found.added else "equal"


def shortened(findings: Sequence[Finding]) -> Iterator[str]:
    """Findings as lines, the first ones of every file."""
    of_file = collections.Counter(finding.where[:1] for finding in findings)
    shown = collections.Counter()
    for finding in findings:
        file = finding.where[:1]
        shown[file] += 1
        if shown[file] <= LINES:
            yield str(finding)
        elif shown[file] == LINES + 1:
            yield f"{''.join(file)}: and {of_file[file] - LINES} more"


def in_any_run(finding: Finding) -> str:
    """A finding without the folder of its file, so that the same one of many runs is one line."""
    return str(Finding((finding.where[0].rpartition("/")[2], *finding.where[1:]), finding.what))


if __name__ == "__main__":
    sys.exit(main())

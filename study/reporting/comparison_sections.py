"""What `experiment.py interpolate` and `disagree` left under a results root, as sections of the page."""

import json
from collections.abc import Sequence
from pathlib import Path

from helper.untrusted.reasons import reason_of
from study.bias import bias_noted
from study.reporting.collect import Collection
from study.reporting.finished_run import FinishedRun
from study.reporting.page import Picture, Section, Sheet, image
from study.runs import COMPARISONS, RESULT


def comparison_sections(root: Path, collection: Collection) -> list[Section]:
    """A section for each comparison; one that is damaged joins what the collection has left out."""
    sections = []
    for file in sorted((root / COMPARISONS).glob(f"*/{RESULT}")):
        try:
            sections.append(section_of(file, root, collection.records))
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            reason = f"damaged: {reason_of(error)}; remove its folder and make the comparison again"
            collection.left_out.append((file.relative_to(root).as_posix(), reason))
    return sections


def section_of(file: Path, root: Path, records: Sequence[FinishedRun]) -> Section:
    """What a result.json tells. Raises one of many errors where it is damaged, or tells of files of another folder."""
    if not within(file, root):
        raise ValueError("no file of this folder")
    result = json.loads(file.read_text())
    pictures = tuple(picture_of(one, file) for one in result["figures"])
    compared = [record for record in records if record.name in result["runs"]]
    intro = bias_noted(" and ".join(result["runs"]), compared)
    rows = result["numbers"]
    columns = tuple(dict.fromkeys(key for row in rows for key in row))
    sheet = Sheet("", "", "", columns, tuple(tuple(row.get(column) for column in columns) for row in rows))
    return Section(result["title"], intro, pictures, (sheet,) if rows else ())


def picture_of(figure: dict[str, str], result: Path) -> Picture:
    """A figure of a comparison. Raises ValueError: its file is not in the comparison's folder, or no PNG."""
    path = result.parent / figure["file"]
    if not within(path, result.parent):
        raise ValueError(f"{figure['file']} is no file of this folder")
    picture = Picture(figure["id"], figure["title"], figure["caption"], path, more=(("PDF", link(result, figure["file"])),))
    image(picture)  # refuses what is no PNG
    return picture


def within(file: Path, folder: Path) -> bool:
    """Whether a path leads to an ordinary file of a folder, and not by `..` or a link to another place."""
    return file.is_file() and file.resolve().is_relative_to(folder.resolve())


def link(result: Path, png: str) -> str:
    """From report/index.html to the PDF beside a comparison's figure."""
    return f"../{COMPARISONS}/{result.parent.name}/{Path(png).with_suffix('.pdf').as_posix()}"

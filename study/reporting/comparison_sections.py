"""What `experiment.py interpolate` and `disagree` left under a results root, as sections of the page."""

import json
from pathlib import Path

from helper.untrusted.reasons import reason_of
from study.bias import bias_noted
from study.reporting.collect import Collection
from study.reporting.page import Picture, Section, Sheet, image
from study.runs import COMPARISONS, RESULT


def comparison_sections(root: Path, collection: Collection) -> list[Section]:
    """What `experiment.py interpolate` and `disagree` left under a results root."""
    sections = []
    for file in sorted((root / COMPARISONS).glob(f"*/{RESULT}")):
        try:
            if not within(file, root):
                raise ValueError("no file of this folder")
            result = json.loads(file.read_text())
            for one in result["figures"]:
                if not within(file.parent / one["file"], file.parent):
                    raise ValueError(f"{one['file']} is no file of this folder")
                image(Picture(one["id"], one["title"], one["caption"], file.parent / one["file"]))  # refuses what is no PNG
            pictures = [
                Picture(p["id"], p["title"], p["caption"], file.parent / p["file"], more=(("PDF", link(file, p["file"])),))
                for p in result["figures"]
            ]
            compared = [record for record in collection.records if record.name in result["runs"]]
            intro = bias_noted(" and ".join(result["runs"]), compared)
            rows = result["numbers"]
            columns = tuple(dict.fromkeys(key for row in rows for key in row))
            sheet = Sheet("", "", "", columns, tuple(tuple(row.get(c) for c in columns) for row in rows))
            sections.append(Section(result["title"], intro, tuple(pictures), (sheet,) if rows else ()))
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            reason = f"damaged: {reason_of(error)}; remove its folder and make the comparison again"
            collection.left_out.append((file.relative_to(root).as_posix(), reason))
    return sections


def within(file: Path, folder: Path) -> bool:
    """Whether a path leads to an ordinary file of a folder, and not by `..` or a link to another place."""
    return file.is_file() and file.resolve().is_relative_to(folder.resolve())


def link(result: Path, png: str) -> str:
    """From report/index.html to the PDF beside a comparison's figure."""
    return f"../{COMPARISONS}/{result.parent.name}/{Path(png).with_suffix('.pdf').as_posix()}"

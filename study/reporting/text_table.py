"""Tables of text that fit a terminal."""

from collections.abc import Sequence

NARROW = 22  # characters to which a text may be cut: of a run, its last ones with the hash among them
GAP = 2  # blanks between two columns


def fitted(
    heading: Sequence[str], rows: Sequence[Sequence[str]], numeric: Sequence[bool], width: int | None
) -> tuple[list[str], list[str]]:
    """(lines of a table, headings of the columns that found no room).

    Texts are cut in the middle before a column is left out, the last one first; the first one stays.

    Args:
        numeric: of every column, whether its cells stand to the right.
        width: characters of a line; None: as many as it takes.
    """
    widths = [max(len(cell) for cell in column) for column in zip(heading, *rows, strict=True)]
    n = len(widths)
    if width is not None:
        least = [each if number else min(each, NARROW) for each, number in zip(widths, numeric, strict=True)]
        n = next((n for n in range(len(least), 1, -1) if total(least[:n]) <= width), 1)
        widths = narrowed(widths[:n], least[:n], width)
    lines = []
    for row in (heading, *rows):
        cells = [cut(cell, size) for cell, size in zip(row, widths, strict=False)]
        aligned = [
            cell.rjust(size) if right else cell.ljust(size) for cell, size, right in zip(cells, widths, numeric, strict=False)
        ]
        lines.append((" " * GAP).join(aligned).rstrip())
    return lines, list(heading[n:])


def narrowed(widths: Sequence[int], least: Sequence[int], width: int) -> list[int]:
    """Widths that fit, none below its least: the widest one that can gives way first."""
    found = list(widths)
    while total(found) > width and found != list(least):
        widest = max((i for i in range(len(found)) if found[i] > least[i]), key=lambda i: found[i])
        found[widest] -= 1
    return found


def total(widths: Sequence[int]) -> int:
    return sum(widths) + GAP * (len(widths) - 1)


def cut(text: str, size: int) -> str:
    """`digits/ml…s42-1c2d3e4f`: a text with its middle left out where it is too long."""
    if len(text) <= size:
        return text
    last = min(size - 1, max(12, size // 2))
    return f"{text[: size - 1 - last]}…{text[len(text) - last :]}"

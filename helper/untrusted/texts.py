"""Texts that others have written, shown so that they harm nobody: lines on a terminal, cells of tables."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas

FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what makes a spreadsheet take a cell for a formula


def one_line(text: object, most: int = 1000) -> str:
    """A text for a terminal: one line, nothing that a terminal obeys or cannot show, cut where it is too long."""
    words = " ".join(str(text).split())
    return shown(words[:most]) + ("..." if len(words) > most else "")


def shown(text: object) -> str:
    """A text with everything escaped that a terminal obeys or cannot show."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def csv_text(table: "pandas.DataFrame") -> str:
    """A table that people open, as CSV: a text that a spreadsheet would compute gets an apostrophe before it.

    Numbers stay as they are; bytes of a file name that are no text become `\\udcXX`.
    """

    def cell(value: Any) -> Any:
        if not isinstance(value, str):
            return value
        text = value.encode(errors="backslashreplace").decode()
        return f"'{text}" if text.startswith(FORMULA) else text

    return table.map(cell).rename(columns=cell).to_csv(index=False)

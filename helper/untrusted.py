"""What others have written, read and shown so that it harms nobody: YAML, arrays, lines on a terminal, cells of tables."""

import collections
import io
import struct
import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy
import pandas
import yaml

DEPTH, VALUES = 20, 100_000  # most levels and values of a YAML document, those behind aliases counted at every use
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what makes a spreadsheet take a cell for a formula
UNREADABLE = (  # what damaged or made-up bytes make zipfile and numpy.load raise
    ValueError, LookupError, TypeError, AttributeError, RuntimeError, ArithmeticError, MemoryError, EOFError, OSError,
    SyntaxError, struct.error, tokenize.TokenError, zlib.error, zipfile.BadZipFile,
)  # fmt: skip
YamlLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's takes a tenth of the time


class Loader(YamlLoader):
    """YAML without dates, which `1024-64-32` would be taken for, and with repeated keys refused instead of half forgotten."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in pairs if tag != "tag:yaml.org,2002:timestamp"]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge" and isinstance(key.value, str)]
        for key, times in collections.Counter(keys).items():
            if times > 1:
                raise yaml.constructor.ConstructorError(None, None, f"{key} stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


def read_yaml(text: str) -> Any:
    """The plain values of a YAML document.

    Raises:
        yaml.YAMLError: none, tags of Python objects, deeper than DEPTH or larger than VALUES.
    """
    check_size(text)
    try:
        return yaml.load(text, Loader)
    except (ValueError, LookupError, AttributeError, TypeError, OverflowError) as error:  # of a tag that the value is not of
        raise yaml.YAMLError(f"a value has a tag that does not fit it ({error})") from None


def check_size(text: str) -> None:
    """Raise YAMLError before a nest of brackets overflows a stack, or aliases of aliases fill the memory."""
    sizes: dict[str, int] = {}  # behind every anchor
    levels: list[list[Any]] = [[None, 0]]  # (anchor, values so far) of what is open
    for event in yaml.parse(text, YamlLoader):
        anchor, size = getattr(event, "anchor", None), 0
        if isinstance(event, yaml.AliasEvent):
            if anchor in (level[0] for level in levels):
                raise yaml.YAMLError(f"*{anchor} stands within what it refers to")
            size = sizes.get(anchor, 1)
        elif isinstance(event, yaml.ScalarEvent):
            size = sizes[anchor] = 1
        elif isinstance(event, yaml.CollectionStartEvent):
            levels.append([anchor, 1])
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, size = levels.pop()
            sizes[anchor] = size
        levels[-1][1] += size
        if len(levels) > DEPTH or levels[-1][1] > VALUES:
            raise yaml.YAMLError(f"more than {DEPTH} levels or {VALUES:,} values")


def read_arrays(path: Path) -> dict[str, numpy.ndarray]:
    """An .npz file of `write_arrays`: nothing in it is unpickled, or larger than the file.

    Raises:
        FileNotFoundError: there is none. RuntimeError: it is damaged, compressed, or holds Python objects.
    """
    if path.exists() and not path.is_file():
        raise RuntimeError(f"{path} is no file")
    content = path.read_bytes()
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            if any(record.compress_type != zipfile.ZIP_STORED for record in archive.infolist()):
                raise ValueError("it is compressed")
        with numpy.load(io.BytesIO(content), allow_pickle=False) as arrays:
            return dict(arrays)
    except UNREADABLE as error:
        raise RuntimeError(f"{path} is damaged ({type(error).__name__} {error}); remove it to have it made again") from None


def one_line(text: object, most: int = 1000) -> str:
    """A text for a terminal: one line, nothing that a terminal obeys or cannot show, cut where it is too long."""
    words = " ".join(str(text).split())
    return shown(words[:most]) + ("..." if len(words) > most else "")


def shown(text: object) -> str:
    """A text with everything escaped that a terminal obeys or cannot show."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def csv_text(table: pandas.DataFrame) -> str:
    """A table that people open, as CSV: a text that a spreadsheet would compute gets an apostrophe before it.

    Numbers stay as they are; bytes of a file name that are no text become `\\udcXX`.
    """

    def cell(value: Any) -> Any:
        if not isinstance(value, str):
            return value
        text = value.encode(errors="backslashreplace").decode()
        return f"'{text}" if text.startswith(FORMULA) else text

    return table.map(cell).rename(columns=cell).to_csv(index=False)

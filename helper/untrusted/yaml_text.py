"""YAML that others may have written: read by version 1.2, within limits, with no code in it."""

import collections
import math
import re
from typing import Any

import yaml

DEPTH, VALUES = 20, 100_000  # most levels and values of a YAML document, those behind aliases counted at every use
YamlLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's takes a tenth of the time
CORE_SCHEMA = {  # of YAML 1.2.2, section 10.3.2: what a plain word is; all else is text, `010` is ten and `no` a word
    "null": r"(?:~|null|Null|NULL)?",
    "bool": r"true|True|TRUE|false|False|FALSE",
    "int": r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+",
    "float": r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
}
CORE_WORDS = {kind: re.compile(rf"(?:{words})\Z") for kind, words in CORE_SCHEMA.items()}
TAG = "tag:yaml.org,2002:"


def core_kind(text: str) -> str:
    """null, bool, int, float, or str: what a plain word of a YAML document is."""
    return next((kind for kind, words in CORE_WORDS.items() if words.match(text)), "str")


def core_value(text: str, kind: str | None = None) -> Any:
    """The value of a plain word of a YAML document.

    Raises:
        ValueError: it is not of the given kind, or a number of thousands of digits.
    """
    kind = kind or core_kind(text)
    if kind != "str" and not CORE_WORDS[kind].match(text):
        raise ValueError(f"{text} is no {kind}")
    if kind == "int":
        return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))
    if kind == "float":
        return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    return {"null": None, "bool": text.lower() == "true"}.get(kind, text)


class Loader(YamlLoader):
    """Mappings, lists and the plain values of YAML 1.2's core schema; YAML 1.1's `<<` besides."""

    yaml_implicit_resolvers = {
        None: [(f"{TAG}merge", re.compile(r"<<\Z")), *((TAG + kind, words) for kind, words in CORE_WORDS.items())]
    }
    yaml_constructors = {
        tag: construct for tag, construct in YamlLoader.yaml_constructors.items() if tag in (None, f"{TAG}seq", f"{TAG}map")
    }

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Replace `<<` by the keys of what it names: a mapping's own keys win, then those of the first one named.

        PyYAML's own takes, of a key in a merged mapping that itself overrides a merged key, the overridden value.
        """
        merged = [value for key, value in node.value if key.tag == f"{TAG}merge"]
        own = [pair for pair in node.value if pair[0].tag != f"{TAG}merge"]
        node.value = own
        origins = [each for value in merged for each in (value.value if isinstance(value, yaml.SequenceNode) else [value])]
        for origin in origins:
            if not isinstance(origin, yaml.MappingNode):
                raise yaml.YAMLError(f"<< needs a mapping, or a list of mappings{node.start_mark}")
            self.flatten_mapping(origin)
        node.value = [pair for origin in reversed(origins) for pair in origin.value] + own

    def value_of(self, node: yaml.ScalarNode) -> Any:
        return core_value(self.construct_scalar(node), node.tag.removeprefix(TAG))


class WordLoader(Loader):
    """The same with numbers and truth values as the words that stand there; only null is a value of its own."""

    def value_of(self, node: yaml.ScalarNode) -> str | None:
        value = super().value_of(node)
        return None if value is None else node.value


for _kind in ("str", *CORE_SCHEMA):
    for _loader in (Loader, WordLoader):
        _loader.add_constructor(TAG + _kind, _loader.value_of)


class Dumper(yaml.SafeDumper):
    """Quotes every text that either version of YAML reads as something else."""


for _kind, _words in CORE_WORDS.items():
    Dumper.add_implicit_resolver(TAG + _kind, _words, None)


def write_yaml(values: dict[str, Any]) -> str:
    """A mapping as the YAML document that `read_yaml`, or any reader of either version of YAML, has the same values of."""
    return yaml.dump(values, Dumper=Dumper, allow_unicode=True, sort_keys=False, width=math.inf)


def read_yaml(text: str, *, words: bool = False) -> Any:
    """The plain values of a YAML document, by version 1.2.

    Args:
        words: leave numbers and truth values as the words that stand there, for a reader who knows what they should be.
    Raises:
        yaml.YAMLError: none, a key that stands twice, tags beyond the core schema, deeper than DEPTH or larger than VALUES.
    """
    check_size(text)
    loader = (WordLoader if words else Loader)(text)
    try:
        root = loader.get_single_node()
        if root is None:
            return None
        check_keys(root)
        return loader.construct_document(root)
    except (ValueError, LookupError, AttributeError, TypeError, OverflowError) as error:  # of a tag that the value is not of
        raise yaml.YAMLError(f"a value has a tag that does not fit it ({error})") from None
    finally:
        loader.dispose()


def check_keys(root: yaml.Node) -> None:
    """Raise YAMLError where a key stands twice in one mapping: the first value would be half forgotten."""
    seen, left = set(), [root]
    while left:
        node = left.pop()
        if id(node) in seen or isinstance(node, yaml.ScalarNode):
            continue
        seen.add(id(node))
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        left += [inner for pair in pairs for inner in pair] or node.value
        for key, times in collections.Counter(key.value for key, _ in pairs if isinstance(key, yaml.ScalarNode)).items():
            if times > 1:
                raise yaml.YAMLError(f"{key} stands twice{node.start_mark}")


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

"""Entries of registries, and which flags they read: flags that no chosen entry reads do not count in a run's identity.

An entry is a function, or an object that has a tuple of `functions`, or None. A function gets what it works on by position,
and the flags that it reads by keyword: its keyword-only parameters have their names. One with `**options` reads them all.
"""

import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from helper.schema.config import Config, flatten

KEYWORD, ALL = inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD


@functools.cache  # a sweep asks it of thousands of configurations
def flags_read(function: Callable) -> frozenset[str] | None:
    """The flags that a function's keyword-only parameters name; None: every flag."""
    parameters = inspect.signature(function).parameters.values()
    if any(parameter.kind is ALL for parameter in parameters):
        return None
    return frozenset(parameter.name for parameter in parameters if parameter.kind is KEYWORD)


def options_of(function: Callable, config: Config) -> dict[str, Any]:
    """{flag: value} of the flags that a function reads.

    Raises:
        TypeError: a keyword-only parameter names no flag of the configuration.
    """
    flat, names = flatten(config), flags_read(function)
    if names is None:
        return flat
    for name in sorted(names):
        if name not in flat:
            where = f"{function.__module__}.{function.__qualname__}"
            raise TypeError(f"{where} has a keyword-only parameter {name!r}, but {type(config).__name__} has no such flag")
    return {name: value for name, value in flat.items() if name in names}


def with_options(function: Callable, config: Config) -> Callable:
    """A function of a registry, given the flags that it reads: what is left are the arguments by position."""
    return functools.partial(function, **options_of(function, config))


def functions_of(entry: Any) -> tuple[Callable, ...]:
    """The functions of an entry; of None there are none."""
    if entry is None:
        return ()
    return (entry,) if callable(entry) else entry.functions


class EntriesThat(Collection):
    """The words of a registry of whose entries something holds, for `when`; it follows what is added to the registry.

    A text of several words, with commas between, is among them where one of these is.
    """

    def __init__(self, registry: Mapping[str, Any], holds: Callable[[Any], bool]) -> None:
        self.registry, self.holds = registry, holds

    def __contains__(self, word: object) -> bool:
        return isinstance(word, str) and any(one in self.registry and self.holds(self.registry[one]) for one in word.split(","))

    def __iter__(self) -> Iterator[str]:
        return (word for word in self.registry if self.holds(self.registry[word]))

    def __len__(self) -> int:
        return sum(1 for _ in self)


class Readers(EntriesThat):
    """Those that read a flag."""

    def __init__(self, flag: str, registry: Mapping[str, Any]) -> None:
        super().__init__(registry, self.reads)
        self.flag = flag

    def reads(self, entry: Any) -> bool:
        found = [flags_read(function) for function in functions_of(entry)]
        return any(names is None or self.flag in names for names in found)


def by_name(*entries: Any) -> dict[str, Any]:
    """{name: entry} of a registry, in this order.

    Raises:
        TypeError: an entry is a class, has no name, or that of another one.
    """
    found = {}
    for entry in entries:
        if isinstance(entry, type) or not isinstance(getattr(entry, "name", None), str):
            raise TypeError(f"{entry!r} cannot be registered: it has to be an object with a name")
        if entry.name in found:
            raise TypeError(f"{entry.name} is registered twice")
        found[entry.name] = entry
    return found


# ------------------------------------------------------------------------------------- flags that entries bring along


def with_own_flags(registry: Mapping[str, Any], *, word: str, after: str) -> Callable[[type], type]:
    """Decorator below `@dataclass`: a configuration has the flags that the entries of a registry declare in `flags`, too.

    Args:
        word: the flag that chooses an entry; a flag of the entries acts with those that read it.
        after: the flag behind which they stand.
    """

    def add(cls: type) -> type:
        own, hints = declared(registry, cls), {}
        for name, hint in cls.__annotations__.items():
            hints[name] = hint
            if name == after:
                hints |= {own_name: own_hint for own_name, (own_hint, _) in own.items()}
        for name, (_, field) in own.items():
            setattr(cls, name, tied(field, {word: Readers(name, registry)}))
        cls.__annotations__ = hints
        return cls

    return add


def declared(registry: Mapping[str, Any], cls: type) -> dict[str, tuple[Any, dataclasses.Field]]:
    """{flag: (type, field)} of all flags that entries of a registry declare, in its order.

    Raises:
        TypeError: a flag is declared twice, or without a type.
    """
    found, classes, owners = {}, [], dict.fromkeys(cls.__annotations__, cls.__name__)
    for entry in registry.values():
        if entry.flags is None or entry.flags in classes:
            continue
        classes.append(entry.flags)
        hints = typing.get_type_hints(entry.flags)
        for name, value in vars(entry.flags).items():
            if isinstance(value, dataclasses.Field) and name not in hints:
                raise TypeError(f"--{name} of {entry.name} has no type: write `{name}: int = flag(...)`, or what it is")
        for name, hint in hints.items():
            if name in owners:
                cure = "read it without declaring it again, or give yours another name"
                raise TypeError(f"--{name} of {entry.name} is a flag of {owners[name]} already: {cure}")
            owners[name] = entry.name
            found[name] = (hint, getattr(entry.flags, name))
    return found


def tied(field: dataclasses.Field, condition: Mapping[str, Any]) -> Any:
    """A flag's field with one more condition under which it acts."""
    spec = field.metadata["flag"]
    conditions = tuple({**one, **condition} for one in spec.when)
    return dataclasses.field(default=field.default, metadata={"flag": dataclasses.replace(spec, when=conditions)})

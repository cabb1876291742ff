"""Which flags the entries of a registry read: those of the others do not count in a run's identity."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any


def reads(*flags: str) -> Callable[[Any], Any]:
    """Decorator of a registry's function: of the flags that only some entries of the registry read, it reads these.

    A function without it may read any of them, so all of them count in `identity`.
    """

    def mark(function: Any) -> Any:
        function.reads = flags
        return function

    return mark


@dataclass(frozen=True)
class Readers:
    """The words of a registry whose entries read a flag, for `when`: those whose `reads` names it, or that have no `reads`.

    An entry that is None reads nothing.
    """

    flag: str
    registry: Mapping[str, Any]

    def __contains__(self, word: object) -> bool:
        entry = self.registry.get(word) if isinstance(word, str) else None
        declared = getattr(entry, "reads", None)
        return entry is not None and (declared is None or self.flag in declared)

    def __iter__(self) -> Iterator[str]:
        return (word for word in self.registry if word in self)

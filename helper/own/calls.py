"""Running code of a user's own: importing it, giving it typed arguments, and saying in one line how it has failed."""

import contextlib
import functools
import importlib
import importlib.util
import inspect
import random
import sys
import traceback
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy

from helper.own.consent import refuse_unnamed
from helper.own.references import INSTALLED, OF_THIS_PROJECT, Reference, location, read_reference, version_of
from helper.schema.config import FlagError
from helper.schema.values import integer, near_match, number, switch
from helper.system.files import file_hash
from helper.system.signals import Interrupted
from helper.system.versions import ROOT
from helper.untrusted.texts import one_line
from helper.untrusted.yaml_text import core_kind, core_value

POSITIONAL_ONLY, ANY_POSITIONAL, ANY_NAMED = (
    inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD,
)  # fmt: skip


class OwnCodeError(RuntimeError):
    """Code of a user's own has failed, or does not do what is asked of it. The traceback shows with --debug 1."""


@contextlib.contextmanager
def own_code(word: str, what: str) -> Iterator[None]:
    """What happens inside is done by code of a user's own. Raises OwnCodeError: it raises something."""
    try:
        yield
    except (OwnCodeError, FlagError, Interrupted):
        raise
    except Exception as error:
        raise OwnCodeError(f"{word}: {what} fails: {failure(error)}; --debug 1 shows the traceback") from error


def failure(error: BaseException) -> str:
    """Kind, first words and place of what has been raised: the last line that is not of a library, if there is one."""
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if is_own(frame.filename)]
    where = f" ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else ""
    return f"{type(error).__name__}: {one_line(error, 300)}{where}"


def is_own(filename: str) -> bool:
    path = Path(filename)
    installed = INSTALLED & set(path.parts) or filename.startswith("<")
    library = path.is_relative_to(Path(contextlib.__file__).parent)
    ours = path.is_relative_to(ROOT) and path.relative_to(ROOT).parts[0] in OF_THIS_PROJECT
    return not installed and not library and not ours


def imported(word: str, version: str | None = None) -> Callable[..., Any]:
    """The function or class that a reference names.

    Args:
        version: that the code has to have, as `version_of` says it; None: whatever is there.
    Raises:
        FlagError: the user has not named it, it is not there, or of another version. OwnCodeError: importing it fails.
    """
    refuse_unnamed(word)
    reference = read_reference(word)
    with own_code(word, "importing it"):
        found = loaded(reference)
    check_version(word, found.version, version)
    module = found.module
    try:
        found = functools.reduce(getattr, reference.name.split("."), module)
    except AttributeError:
        names = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
        near = near_match(reference.name, names)
        raise FlagError(f"{word}: {reference.module} has no {reference.name}{near}") from None
    if not callable(found) or (not isinstance(found, type) and hasattr(found, "parameters")):
        raise FlagError(f"{word} is a {type(found).__name__} and no function or class: give one that makes it")
    return found


def check_version(word: str, found: str, wanted: str | None) -> None:
    """Raise FlagError where code is not of the version that is wanted."""
    if wanted is None or found == wanted:
        return
    if version_of(word) == wanted:
        raise FlagError(f"{word} has changed since this process has imported it: start the program again")
    raise FlagError(
        f"{word} is not the code that this was made with: it has been {wanted} and is {found}; bring that back, or, for a run "
        "of what is there now, leave --net_code out"
    )


@dataclass(frozen=True)
class Loaded:
    """A module as this process has it, whatever becomes of its file."""

    module: types.ModuleType
    version: str


LOADED: dict[str, Loaded] = {}


def loaded(reference: Reference) -> Loaded:
    """The module of a reference, imported once."""
    if reference.module not in LOADED:
        version = version_of(reference.word)
        module = file_module(*location(reference)) if reference.is_file else importlib.import_module(reference.module)
        LOADED[reference.module] = Loaded(module, version)
    return LOADED[reference.module]


def file_module(path: Path, folder: Path) -> types.ModuleType:
    """A file as a module; what lies beside it can be imported from then on, behind everything else."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
    name = f"own_{path.stem}_{file_hash(str(path).encode())[:8]}"  # the same in every process, so that networks can be sent
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    with contextlib.ExitStack() as undo:
        sys.modules[name] = module  # dataclasses look there while the module runs
        undo.callback(sys.modules.pop, name)
        spec.loader.exec_module(module)
        undo.pop_all()
    return module


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """The generators of Python and NumPy begin with a seed inside and are as before afterwards."""
    former, of_numpy = random.getstate(), numpy.random.get_state()
    random.seed(seed)
    numpy.random.seed(seed % 2**32)
    try:
        yield
    finally:
        random.setstate(former)
        numpy.random.set_state(of_numpy)


# --------------------------------------------------------------------------------------------------------- arguments


def canonical_arguments(value: Any) -> str:
    """`depth=2,dim=64`, sorted by name. Raises ValueError: something else than key=value with commas between, or one twice."""
    pairs = {}
    for part in filter(None, (part.strip() for part in str(value).split(","))):
        key, equals, text = (word.strip() for word in part.partition("="))
        if not equals or not key.isidentifier():
            raise ValueError("expected key=value, with commas between")
        if key in pairs:
            raise ValueError(f"expected every key once, and {key} stands twice")
        pairs[key] = text
    return ",".join(f"{key}={text}" for key, text in sorted(pairs.items()))


def pairs_of(text: str) -> dict[str, str]:
    """{key: text} of canonical arguments."""
    return dict(part.split("=", 1) for part in text.split(",") if part)


def arguments_for(word: str, function: Callable[..., Any], flag: str, text: str, offered: Mapping[str, Any]) -> dict[str, Any]:
    """What a function is called with: what is offered, and the arguments of a flag, which come first.

    Args:
        flag: its name, for messages. text: its canonical value.
        offered: {parameter: value}; it takes them all.
    Raises:
        FlagError: an argument that it does not take, one of the wrong type, or one that it needs and has not got.
    """
    parameters, given = parameters_of(word, function), pairs_of(text)
    takes_any = any(parameter.kind is ANY_NAMED for parameter in parameters.values())
    named = {name: p for name, p in parameters.items() if p.kind not in (ANY_NAMED, ANY_POSITIONAL, POSITIONAL_ONLY)}
    for key in given:
        if key not in named and not takes_any:
            own = [name for name in named if name not in offered]
            raise FlagError(f"--{flag} {key}: {word} takes no {key}, but {', '.join(own) or 'nothing'}{near_match(key, own)}")
    found = dict(offered) | {key: typed(flag, key, value, named.get(key)) for key, value in given.items()}
    missing = [name for name, p in named.items() if p.default is p.empty and name not in found]
    if missing:
        cure = ",".join(f"{name}=..." for name in missing)
        raise FlagError(f"{word} needs {', '.join(missing)}: give --{flag} {cure}")
    return found


def parameters_of(word: str, function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    for evaluated in (True, False):  # annotations may name what is not imported
        try:
            return inspect.signature(function, eval_str=evaluated).parameters
        except (NameError, AttributeError, TypeError, SyntaxError):
            continue
        except ValueError:
            break
    raise FlagError(f"{word} does not say which arguments it takes, as builtins do not: wrap it in a function of your own")


def typed(flag: str, key: str, text: str, parameter: inspect.Parameter | None) -> Any:
    """A value of a flag's text, by what the parameter is annotated with, else by its default, else as YAML reads it."""
    kinds = kinds_of(parameter)
    if core_kind(text) == "null" and (type(None) in kinds or not kinds):
        return None
    reasons = []
    for kind in [kind for kind in kinds if kind is not type(None)] or [None]:
        try:
            return CONVERTERS[kind](text)
        except (ValueError, OverflowError) as error:
            reasons.append(str(error))
    raise FlagError(f"--{flag} {key}={one_line(text, 100)}: {reasons[0]}")


def numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(integer(part) for part in text.split("-") if text)
    except ValueError:
        raise ValueError("expected integers joined by dashes, such as 128-64") from None


CONVERTERS: dict[Any, Callable[[str], Any]] = {
    bool: switch, int: integer, float: lambda text: float(number(text)), str: str, tuple: numbers,
    list: lambda text: list(numbers(text)), None: core_value,
}  # fmt: skip


def kinds_of(parameter: inspect.Parameter | None) -> list[Any]:
    """Of bool, int, float, str, tuple, list and None those that a parameter may be; none where nothing is said of it."""
    if parameter is None:
        return []
    hint = parameter.annotation
    if hint is parameter.empty or isinstance(hint, str):
        hint = parameter.empty if parameter.default in (parameter.empty, None) else type(parameter.default)
    union = isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union
    found = []
    for one in typing.get_args(hint) if union else (hint,):
        origin = typing.get_origin(one) or one
        kind = tuple if origin is Sequence else origin
        if kind in CONVERTERS or kind is type(None):
            found.append(kind)
    return found

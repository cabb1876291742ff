"""Data of a user's own, `--loader_name MODULE:FUNCTION`."""

import functools
from collections.abc import Mapping
from typing import Any

from helper.own.calls import arguments_for, canonical_arguments, imported, own_code, parameters_of
from helper.schema.config import flag
from loader.archives import DataError
from loader.arrays import NAMES, content_of, source_of, with_fingerprint
from loader.dataset import Source
from loader.spec import DatasetSpec

ANY = "MODULE:FUNCTION"  # stands for all of them where data sets are listed


class OwnFlags:
    loader_args: str = flag(
        "", "arguments of a function of your own, such as fold=2; typed by what it says of them", convert=canonical_arguments,
        identity=False, whole=True,
    )  # fmt: skip


@functools.cache
def own_dataset(word: str) -> DatasetSpec:
    """The spec of a function, which is run when its data are loaded and no sooner."""

    def load(
        *, root: str, filename: str | None, image_size: int | None, test_size: float, split_seed: int, loader_args: str
    ) -> Source:
        flags = {
            "root": root, "filename": filename, "image_size": image_size, "test_size": test_size, "split_seed": split_seed,
        }  # fmt: skip
        function = imported(word)
        names = parameters_of(word, function)
        offered = {name: value for name, value in flags.items() if name in names}
        arguments = arguments_for(word, function, "loader_args", loader_args, offered)
        with own_code(word, "loading the data"):
            found = function(**arguments)
        return as_source(found, word, test_size=test_size, split_seed=split_seed)

    return DatasetSpec(word, load, flags=OwnFlags)


def as_source(found: Any, word: str, *, test_size: float, split_seed: int) -> Source:
    """What a function gives, with a hash of its content.

    It gives a `Source`; a mapping with x_train, y_train, x_test, y_test; these four; or two pairs. Without what is for testing,
    a share of the examples is held out.

    Raises:
        DataError: it is something else, or no data set.
    """
    if isinstance(found, Source):
        try:
            found.check()
        except ValueError as error:
            raise DataError(f"what {word} gives is no data set: {error}") from None
        return with_fingerprint(found, content_of(found))
    if isinstance(found, (tuple, list)) and len(found) == 2 and all(isinstance(part, (tuple, list)) for part in found):
        found = [array for pair in found for array in pair]
    if isinstance(found, (tuple, list)) and len(found) in (2, 4):
        found = dict(zip(NAMES, found, strict=False))
    if not isinstance(found, Mapping):
        raise DataError(
            f"{word} gives a {type(found).__name__}: it has to give a loader.dataset.Source, or arrays {', '.join(NAMES)}"
        )
    return source_of(found, word, None, test_size=test_size, split_seed=split_seed)

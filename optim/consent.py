"""Code of a user's own that a run needs, and whether it may run here."""

from pathlib import Path

from helper.own.consent import trust
from helper.own.references import is_reference
from helper.schema.config import FlagError, flag
from optim.config import RunConfig

TRUST_CODE = "run the code that the files of a run name, which may do whatever you may: look at it before"


def trust_flag() -> bool:
    """The field of a command that reads runs of others."""
    return flag(False, TRUST_CODE)


def code_named(config: RunConfig) -> dict[str, str]:
    """{flag: MODULE:NAME} of the code that a run needs beside this program's."""
    named = {"net_name": config.network.net_name, "loader_name": config.data.loader_name}
    return {name: word for name, word in named.items() if is_reference(word)}


def consent(config: RunConfig, path: Path, *, trust_code: bool) -> None:
    """Let this process run the code that a run's folder names, if its user says so.

    Raises:
        FlagError: there is such code, and they do not.
    """
    named = code_named(config)
    if named and not trust_code:
        raise FlagError(
            f"{path} names code that is not run unasked, {', '.join(named.values())}: look at it, then add --trust_code 1"
        )
    trust(named.values())

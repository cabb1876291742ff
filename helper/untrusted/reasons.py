"""Why a file cannot be read, in its user's words."""

import csv
import json
import pickle
import struct
import zipfile
import zlib

import yaml

from helper.untrusted.texts import one_line

LIBRARIES_WORDS = (  # kinds of exceptions whose texts are written for programmers, and what they mean of a file
    (UnicodeDecodeError, "it is no UTF-8 text"),
    (RecursionError, "it is nested too deeply"),
    (MemoryError, "it asks for more memory than there is"),
    (pickle.UnpicklingError, "it holds something else than tensors and plain values, or its end is missing"),
    ((zipfile.BadZipFile, EOFError, struct.error, zlib.error), "its end is missing, or it is another kind of file"),
)


class Unfit(ValueError):
    """A file is not what it should be; the message is a clause that says why, such as `it is compressed`."""


def reason_of(error: BaseException) -> str:
    """Why a file cannot be read, as a clause for its user, of what reading it has raised.

    Names of exceptions and a library's advice stay out: `torch.load` proposes to run whatever code a file holds.
    """
    if isinstance(error, Unfit | csv.Error):
        return one_line(error, 300)
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        return one_line(f"line {error.problem_mark.line + 1}: {error.problem}", 300)
    if isinstance(error, yaml.YAMLError):
        return one_line(error, 300)
    if isinstance(error, json.JSONDecodeError):
        return f"line {error.lineno} is no JSON"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, KeyError) and error.args and str(error.args[0]).isidentifier():
        return f"it lacks {error.args[0]}"
    if "Object arrays cannot be loaded" in str(error):
        return "Object arrays cannot be loaded: they may run code"
    return next(
        (words for kinds, words in LIBRARIES_WORDS if isinstance(error, kinds)), "it holds something else than it should"
    )

"""Imported first by a program, and by nothing else: until `imports_are_done` no garbage cycles are searched for.

What modules make stays. Going through those hundreds of thousands of objects again and again, while they are imported and
at every later search, takes a fifth of the time to find a finished run.
"""

import gc

gc.disable()


def imports_are_done() -> None:
    """Garbage is searched for again, but not among what has been imported."""
    gc.freeze()
    gc.enable()

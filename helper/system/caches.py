"""Where a user keeps what can be made again."""

import os
import tempfile
from pathlib import Path


def user_cache() -> Path:
    """This program's folder, which need not be there, links followed. Without a home it is one among the temporary files."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    try:
        folder = (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "price-of-sparsity"
    except RuntimeError:  # neither HOME nor the list of users knows one
        folder = Path(tempfile.gettempdir()) / f"price-of-sparsity-{os.geteuid()}"
    return Path(os.path.realpath(folder))

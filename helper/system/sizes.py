"""How much room files take."""

from pathlib import Path


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a folder; a link counts for itself."""
    if not path.is_dir():
        return path.lstat().st_size
    return sum(file.lstat().st_size for file in path.rglob("*") if file.is_symlink() or file.is_file())


def in_words(n_bytes: int) -> str:
    """`12.3 MB`."""
    size, unit = float(n_bytes), ""
    for larger in ("kB", "MB", "GB", "TB"):
        if size < 999.5:
            break
        size, unit = size / 1000, larger
    return f"{size:.3g} {unit}" if unit else f"{n_bytes} bytes"

"""Numbers as people read them in tables."""


def digits(number: float) -> str:
    """4 significant digits, with their trailing zeros unless they are the whole truth: 0.9, but 0.90001 -> 0.9000."""
    text = f"{number:.4g}"
    if 1e4 <= abs(float(text)) < 1e7:
        return f"{float(text):.0f}"
    return text if float(text) == number else f"{number:#.4g}".rstrip(".")

"""Which depths a network can have."""


def multiple(depth: int, layers: int, others: int, name: str, *, below: int | None = None) -> int:
    """n of a network that has `layers` n + `others` layers.

    Args:
        name: of what has so many. below: such depths are.
    Raises:
        ValueError: there is none of that depth; the message names a near one.
    """
    if depth < layers + others or (depth - others) % layers:
        near = max(1, round((depth - others) / layers))
        near = near if below is None else min(near, (below - 1 - others) // layers)
        limit = "" if below is None else f" below {below}"
        raise ValueError(
            f"--depth {depth}: must be {layers}n+{others} for {name}{limit}; did you mean {layers * near + others}?"
        )
    return (depth - others) // layers

"""How long PyTorch's threads wait for each other by running in circles. Nothing here, or before its use, loads torch."""

from collections.abc import Mapping

SPINS = "10000"  # some 30 microseconds; libgomp's own 300,000 are a millisecond
CHOSEN = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")  # a user who sets either has decided


def brief_spins(environment: Mapping[str, str]) -> dict[str, str]:
    """Variables to add to an environment before torch is loaded: its libgomp reads them once, when it is loaded itself.

    At the end of every parallel loop each thread waits for the slowest one, and spins for a while before it sleeps. On a
    machine that others use too, the slowest one may not be running at all because the others spin on its core.
    `python scripts/benchmark_shared.py` shows what that costs.
    """
    return {} if any(name in environment for name in CHOSEN) else {"GOMP_SPINCOUNT": SPINS}

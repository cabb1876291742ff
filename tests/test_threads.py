"""How PyTorch's threads wait is settled before PyTorch is loaded, and never against the user's word."""

import os
import subprocess
import sys

import pytest

from helper.system.threads import CHOSEN, SPINS, brief_spins
from helper.system.versions import ROOT

# prints, at the first look for torch, what is in the environment and whether an OpenMP runtime has been loaded already
WATCH = """
import os, sys

class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            sys.meta_path.remove(self)
            loaded = any("gomp" in line or "libomp" in line for line in open("/proc/self/maps"))
            print("torch:", os.environ.get("GOMP_SPINCOUNT"), "late" if loaded else "in time")

sys.meta_path.insert(0, Watch())
"""


def fresh(code: str, **variables: str) -> subprocess.CompletedProcess:
    environment = {name: value for name, value in os.environ.items() if name not in CHOSEN} | variables
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True)


@pytest.mark.parametrize("chosen", [{"GOMP_SPINCOUNT": "7"}, {"OMP_WAIT_POLICY": "ACTIVE"}, {"GOMP_SPINCOUNT": ""}])
def test_what_the_user_has_set_stays(chosen):
    assert brief_spins(chosen) == {}
    assert brief_spins({"PATH": "/bin"}) == {"GOMP_SPINCOUNT": SPINS}


@pytest.mark.parametrize(
    "start",
    [
        "import run; run.main(['--help'])",
        "import experiment; experiment.main(['status', '--help'])",
        "import experiment; experiment.main(['sweep', '--help'])",
        "import experiment; experiment.main(['disagree', '--help'])",
    ],
)
def test_spins_are_set_before_an_openmp_runtime_is_loaded(start):
    lines = fresh(f"{WATCH}\n{start}").stdout.splitlines()
    assert f"torch: {SPINS} in time" in lines


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="libgomp is what PyTorch uses on Linux")
@pytest.mark.parametrize(
    ("variables", "count"), [({}, SPINS), ({"GOMP_SPINCOUNT": "77"}, "77"), ({"OMP_WAIT_POLICY": "PASSIVE"}, "0")]
)
def test_libgomp_spins_as_it_was_told(variables, count):
    """libgomp itself says so when it is loaded."""
    said = fresh("import run, torch", OMP_DISPLAY_ENV="verbose", **variables).stderr
    assert f"GOMP_SPINCOUNT = '{count}'" in said

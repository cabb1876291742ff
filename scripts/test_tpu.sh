#!/usr/bin/env bash
# The tests of --device tpu on XLA's CPU device: .venv-tpu trains, the ordinary environment trains the same, compares, and
# measures afterwards. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
install_into .venv-tpu requirements-tpu.txt requirements.txt
install_environment requirements-dev.txt requirements.txt

export OMP_NUM_THREADS=1 REQUIRE_TPU=1
python -m pytest -n 2 --dist worksteal -m tpu "$@"

#!/usr/bin/env bash
# Linter and tests in a virtual environment of their own (.venv). Arguments go to pytest: bash scripts/test.sh -m smoke
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
install_environment requirements-dev.txt requirements.txt

ruff check .
ruff format --check .
export OMP_NUM_THREADS=1  # tiny networks: two workers of one thread each beat one of two
[ -n "${OMP_WAIT_POLICY-}" ] || export GOMP_SPINCOUNT="${GOMP_SPINCOUNT-10000}"  # as helper/system/threads.py has it
# a third for two cores: some tests wait, for jobs of SLURM or processes; long ones stand together, the idle worker takes some
python -m pytest -n 3 --dist worksteal "$@"

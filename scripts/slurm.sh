#!/usr/bin/env bash
# Debian's SLURM and munge for the tests with jobs of SLURM; does nothing where both are there, and starts no daemon.
set -euo pipefail
PATH="$PATH:/usr/sbin:/sbin"
command -v slurmctld >/dev/null && command -v slurmd >/dev/null && command -v sbatch >/dev/null && command -v munged >/dev/null && exit 0
source "$(dirname "$0")/debian.sh"
install_debian slurm-wlm munge

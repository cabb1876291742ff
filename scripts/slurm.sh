#!/usr/bin/env bash
# Debian's SLURM and munge for the tests with jobs of SLURM; does nothing where both are there, and starts no daemon.
set -euo pipefail
PATH="$PATH:/usr/sbin:/sbin"
command -v slurmctld >/dev/null && command -v slurmd >/dev/null && command -v sbatch >/dev/null && command -v munged >/dev/null && exit 0

as_root=()
[ "$(id -u)" = 0 ] || as_root=(sudo -n)
install() { "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends slurm-wlm munge; }

log=$(mktemp)
trap 'rm -f "$log"' EXIT
echo "installing slurm-wlm and munge"
# package lists may be missing or out of date: they are fetched once the packages cannot be had without
if ! { install || { "${as_root[@]}" apt-get update -qq && install; }; } >"$log" 2>&1; then
    tail -n 20 "$log" >&2
    echo "slurm.sh: error: apt-get could not install slurm-wlm and munge (see above); it needs Debian and root" >&2
    exit 1
fi

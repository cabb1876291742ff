#!/usr/bin/env bash
# Debian's valgrind, clang, cross compiler for ARM and QEMU for the tests of the sparse kernels; does nothing where all are there.
set -euo pipefail
command -v valgrind >/dev/null && command -v clang++ >/dev/null && command -v aarch64-linux-gnu-g++ >/dev/null \
    && command -v qemu-aarch64 >/dev/null && exit 0
source "$(dirname "$0")/debian.sh"
install_debian valgrind clang g++-aarch64-linux-gnu qemu-user

#!/usr/bin/env bash
# Debian's Chromium and ChromeDriver for the browser tests; does nothing where both are there.
set -euo pipefail
command -v chromium >/dev/null && command -v chromedriver >/dev/null && exit 0
source "$(dirname "$0")/debian.sh"
install_debian chromium chromium-driver

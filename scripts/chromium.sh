#!/usr/bin/env bash
# Debian's Chromium and ChromeDriver for the browser tests; does nothing where both are there.
set -euo pipefail
command -v chromium >/dev/null && command -v chromedriver >/dev/null && exit 0

as_root=()
[ "$(id -u)" = 0 ] || as_root=(sudo -n)
install() { "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium chromium-driver; }

log=$(mktemp)
trap 'rm -f "$log"' EXIT
echo "installing chromium and chromium-driver"
# package lists may be missing or out of date: they are fetched once the packages cannot be had without
if ! { install || { "${as_root[@]}" apt-get update -qq && install; }; } >"$log" 2>&1; then
    tail -n 20 "$log" >&2
    echo "chromium.sh: error: apt-get could not install chromium and chromium-driver (see above); it needs Debian and root" >&2
    exit 1
fi

#!/usr/bin/env bash
# Proof that a redesign changes no number: the same small runs by the program in OLD_CHECKOUT and by this one, compared.
#     git worktree add ../old COMMIT && bash scripts/compare_versions.sh ../old
# --results DIR keeps what both leave, --only NAME... makes some of the runs, --help lists them. PYTHON runs both versions.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
PYTHON=${PYTHON:-$([ -x "$root/.venv/bin/python" ] && echo "$root/.venv/bin/python" || echo python)}
exec "$PYTHON" "$root/scripts/compare_versions.py" "$@"

#!/usr/bin/env bash
# Sets up a virtual environment if there is none, then checks format, lint, types, protos and runs every test.
# Usage: bash tests/run.sh [--cov] [pytest arguments]
# --cov also prints the line coverage, of other processes too; it costs about half as much time again.
set -euo pipefail
cd "$(dirname "$0")/.."

. examples/setup.sh
set_up_environment dev

# Peers and tests share two cores or so: one torch thread each, or they thrash.
export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false

.venv/bin/ruff format --check --quiet .
.venv/bin/ruff check --quiet .
.venv/bin/mypy
# Three workers for two cores, since tests of whole swarms wait a lot. Tests of one file stay together, because they
# share what is dear to set up; files go in order, so that the longest (e2e, node) are not the last.
tests=(.venv/bin/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder)
if [ "${1:-}" != --cov ]; then
    exec "${tests[@]}" "$@"
fi
shift
"${tests[@]}" --cov --cov-report= "$@"
echo "line coverage: $(.venv/bin/coverage report --format=total) %"

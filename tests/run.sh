#!/usr/bin/env bash
# Sets up a virtual environment if there is none, then checks format, lint, types, protos and runs every test.
# Usage: bash tests/run.sh [pytest arguments]
set -euo pipefail
cd "$(dirname "$0")/.."

. examples/setup.sh
set_up_environment dev

# Peers and tests share two cores or so: one torch thread each, or they thrash.
export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false

.venv/bin/ruff format --check --quiet .
.venv/bin/ruff check --quiet .
.venv/bin/mypy
.venv/bin/python -m pytest "$@"

#!/usr/bin/env bash
# From a fresh clone to a trained model: installs into .venv, then runs a coordinator and three peers on this machine,
# each its own process, and lets the model write. Needs Python 3.11 or newer and a few minutes on two cores.
# Usage: bash examples/quickstart.sh [options of 'tsr-swarm local', such as --plain or --json]
set -euo pipefail
cd "$(dirname "$0")/.."

. examples/setup.sh
set_up_environment

exec .venv/bin/tsr-swarm local examples/quickstart.toml --peers 3 "$@"

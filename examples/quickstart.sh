#!/usr/bin/env bash
# From a fresh clone to a trained model: installs into .venv, then runs a coordinator and three peers on this machine,
# each its own process, and lets the model write. Needs Python 3.11 or newer and a few minutes on two cores.
# Usage: bash examples/quickstart.sh [options of 'tsr-swarm local', such as --plain, --json or --preset lean]
set -euo pipefail
cd "$(dirname "$0")/.."

. examples/setup.sh
set_up_environment

.venv/bin/tsr-swarm local examples/quickstart.toml --peers 3 "$@"

case " $* " in *" --json "* | *" --preset"* | *" --help "* | *" -h "*) exit ;; esac
lean=$(sed -n 's/^Last loss of lean: median \([0-9.]*\),.*/\1/p' examples/results/quickstart.md)
echo
echo "This was LoRDO with sketches. Muon in cores ended the same run at $lean in our table: bash examples/quickstart.sh --preset lean"

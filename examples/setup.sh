# Sourced by quickstart.sh and tests/run.sh: makes .venv with this project in it. Says first what it will download.

set_up_environment() { # $1: an extra of pyproject.toml, or nothing
    local extra=${1:-} python=${PYTHON:-python3}
    local wanted=".${extra:+[$extra]}" stamp=.venv/.installed${extra:+-$extra}
    if [ -f "$stamp" ] && [ "$stamp" -nt pyproject.toml ] && [ "$stamp" -nt .ci/constraints.txt ]; then
        return
    fi
    if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        echo "Python 3.11 or newer is needed, '$python' is $("$python" --version 2>&1); set PYTHON=/path/to/python3." >&2
        exit 1
    fi
    if [ ! -x .venv/bin/python ]; then
        # A torch that is installed already is used, whichever build it is.
        "$python" -m venv --system-site-packages .venv
        if ! .venv/bin/python -c 'import torch' 2>/dev/null; then
            rm -rf .venv
            "$python" -m venv .venv
        fi
    fi
    local pip=(.venv/bin/python -m pip install --quiet --disable-pip-version-check)
    if ! .venv/bin/python -c 'import torch' 2>/dev/null; then
        echo "Installing PyTorch: about 200 MB for a build without CUDA, several GB where the package index has only"
        echo "builds with CUDA. To choose, set TORCH_INDEX_URL to an index of https://pytorch.org/get-started/locally/."
        "${pip[@]}" -c .ci/constraints.txt ${TORCH_INDEX_URL:+--index-url "$TORCH_INDEX_URL"} torch
    fi
    echo "Installing tsr-swarm and what it needs (about 130 MB to download${extra:+, and its $extra tools})."
    "${pip[@]}" -c .ci/constraints.txt -e "$wanted"
    touch "$stamp"
}

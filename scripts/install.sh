#!/usr/bin/env bash
# Installs a requirements file into .venv (made if missing), with the smallest torch build that this machine can use.
# Usage: scripts/install.sh [requirements.txt]      PYTHON=python3.12 chooses the interpreter, VENV another folder, CONSTRAINTS another file.
set -euo pipefail
cd "$(dirname "$0")/.."
requirements=${1:-requirements.txt}
venv=${VENV:-.venv}
cpu_index=https://download.pytorch.org/whl/cpu

say() { echo "install: $*"; }
die() { echo "install: $*" >&2; exit 1; }

new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
        if new_enough "$candidate"; then command -v "$candidate"; return; fi
    done
    die "Python 3.11 or newer is needed, found $("${PYTHON:-python3}" --version 2>&1 | head -1); install one, or name it: PYTHON=/path/to/python3.12 make install"
}

make_venv() {
    if new_enough "$venv/bin/python" && "$venv/bin/python" -m pip --version >/dev/null 2>&1; then return; fi
    local python
    python=$(find_python)
    say "$venv with $("$python" --version)"
    "$python" -m venv --clear "$venv" || die "$python cannot make a virtual environment; on Debian and Ubuntu: apt-get install python3-venv"
}

pip() { "$venv/bin/python" -m pip --disable-pip-version-check "$@"; }

has_torch() {
    local shown
    shown=$(pip show torch 2>/dev/null) && grep -qE "^Version: ${1//./\\.}(\+|$)" <<<"$shown"
}

wants_default_build() { [ "$(uname -s)" != Linux ] || [[ $(nvidia-smi -L 2>/dev/null) == *GPU* ]]; }

# PyPI's torch for Linux brings several GB of CUDA libraries, of no use without an NVIDIA GPU.
install_torch() {
    local version
    version=$(sed -n 's/^torch==\([^ ;]*\).*/\1/p' requirements.txt)
    if has_torch "$version"; then return; fi
    if wants_default_build; then
        say "torch $version: default build"
    elif pip install --quiet --no-deps --no-index "torch==$version" 2>/dev/null; then
        say "torch $version: from the wheel folder that pip is configured with"
    elif pip install --quiet --no-deps --retries 1 --timeout 20 --index-url "$cpu_index" "torch==$version" 2>/dev/null; then
        say "torch $version: CPU build from $cpu_index"
    else
        say "torch $version: no CPU build within reach, taking the default one (several GB)"
    fi
}

make_venv
install_torch
say "packages of $requirements"
pip install --quiet -r "$requirements" -c "${CONSTRAINTS:-constraints.txt}"
# Any kernel of this environment finds sae_lib and suite, whatever folder its notebook lies in.
if [ "$requirements" != requirements-saelens.txt ]; then pip install --quiet --no-deps --no-build-isolation -e .; fi

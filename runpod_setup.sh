#!/usr/bin/env bash
set -euo pipefail

usage() {
    cat <<'TEXT'
Usage: ./runpod_setup.sh [--no-lab] [--port 8888]

Makes a bare GPU pod (Debian or Ubuntu) ready, from inside a clone of this repository; safe to run again:
  1. Python 3.11 or newer and a virtual environment in .venv. The pod's own torch is kept where it is the pinned version;
     otherwise the pin is installed, in the newest build that the pod's driver allows.
  2. The pinned packages, and a browser for static figures (Debian: chromium; Ubuntu: Google Chrome, for its chromium is an empty stub).
  3. What takes long to make outlives the pod, on the volume (/workspace where there is one): runs/, Hugging Face's cache (unless
     HF_HOME says otherwise) and pip's. The environment lies on the container's own disk, which is faster and is lost when the pod
     stops: run this script again then.
  4. python -m suite doctor --profile runpod: what still does not work, and how to fix it.
  5. JupyterLab in the background, behind a fresh token in a file that only this user can read; the token is printed nowhere.
     On a pod (RUNPOD_POD_ID is set here, or for the container's first process) it listens on 0.0.0.0, and the address printed is
     the pod's https proxy. Anywhere else it listens on 127.0.0.1 alone: reach it from another machine through an ssh tunnel.

  --no-lab      stop after step 4
  --port N      JupyterLab's port, 8888 unless given; the pod must expose it
Then start the job: make run PROFILE=runpod (it goes on after a stop with the same command).
Environment: PYTHON chooses the interpreter, VOLUME the volume, HF_TOKEN is passed on and never shown.
As a pod's start command: bash -c './runpod_setup.sh && sleep infinity'
TEXT
}

lab=yes
port=8888
while [ $# -gt 0 ]; do
    case $1 in
        --no-lab) lab=no ;;
        --port) port=${2:?--port needs a number}; shift ;;
        -h | --help) usage; exit 0 ;;
        *) echo "unknown option $1" >&2; usage >&2; exit 2 ;;
    esac
    shift
done
[[ $port =~ ^[0-9]+$ ]] || { echo "--port $port: expected a number" >&2; exit 2; }

cd "$(dirname "$0")"
export VENV=.venv
py=$VENV/bin/python
pin=$(sed -n 's/^torch==\([^ ;]*\).*/\1/p' requirements.txt)
say() { printf '\n== %s\n' "$*"; }
say_next() { echo 'then start the job: make run PROFILE=runpod (it goes on after a stop with the same command); in JupyterLab set profile = "runpod" in the second cell of a notebook'; }
apt_install() {
    [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || return 1
    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}
new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }
# The builds to try for a driver's CUDA version (128: 12.8): the newest that it knows first, then, since CUDA 12 runs on every driver
# of its own generation, those after it.
builds_for() {
    local known=() later=() build
    for build in 129 128 126; do
        if [ "$build" -le "$1" ]; then known+=("cu$build"); else later=("cu$build" ${later[@]+"${later[@]}"}); fi
    done
    echo ${known[@]+"${known[@]}"} ${later[@]+"${later[@]}"}
}
has_pinned_torch() { "$1" -c 'import sys; from importlib.metadata import version; sys.exit(version("torch").split("+")[0] != sys.argv[1])' "$pin" 2>/dev/null; }

# The interpreter that has the pinned torch, else the first that is new enough; always the real one behind links and virtual
# environments, for only its packages can be seen from .venv.
find_python() {
    local candidate first=
    for candidate in ${PYTHON:-python python3 python3.13 python3.12 python3.11}; do
        new_enough "$candidate" || continue
        candidate=$("$candidate" -c 'import os, sys; print(os.path.realpath(sys.executable))')
        if has_pinned_torch "$candidate"; then echo "$candidate"; return; fi
        first=${first:-$candidate}
    done
    echo "$first"
}

say "Volume"
volume=${VOLUME:-/workspace}
environment=$VENV
if [ -d "$volume" ] && [ -w "$volume" ]; then
    if [ -z "${HF_HOME:-}" ]; then
        export HF_HOME=$volume/huggingface
        grep -qsxF "export HF_HOME=$HF_HOME" ~/.bashrc || echo "export HF_HOME=$HF_HOME" >>~/.bashrc
    fi
    export PIP_CACHE_DIR=${PIP_CACHE_DIR:-$volume/pip}
    case $(realpath .)/ in
        "$(realpath "$volume")"/*) # the checkout is on the volume, and runs/ with it
            environment=$HOME/.local/share/sae_lib/venv
            if [ ! -e "$VENV" ] || [ -L "$VENV" ]; then ln -sfn "$environment" "$VENV"; fi
            ;;
        *)
            mkdir -p "$volume/runs"
            [ -e runs ] || ln -s "$volume/runs" runs
            ;;
    esac
    [ -L "$VENV" ] || environment=$VENV
else
    echo "no volume at $volume: runs are lost when the pod stops"
fi
echo "runs: $(realpath -m runs)  environment: $(realpath -m "$VENV")  Hugging Face: ${HF_HOME:-$HOME/.cache/huggingface}"

say "Python and virtual environment"
if ! new_enough "$py"; then
    python=$(find_python)
    if [ -z "$python" ] && apt_install python3.11 python3.11-venv; then python=python3.11; fi
    [ -n "$python" ] || { echo "Python 3.11 or newer is needed and apt-get has no python3.11 here; choose a pod image with it, or PYTHON=/path/to/python" >&2; exit 1; }
    "$python" -c 'import ensurepip' 2>/dev/null || apt_install "$("$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')" || true
    site=()
    if has_pinned_torch "$python"; then site=(--system-site-packages); echo "keeping the pod's own torch $pin"; fi
    "$python" -m venv --clear "${site[@]}" "$environment"
fi
"$py" --version

say "Packages"
# PyPI's build of torch needs a driver for CUDA 13; an older driver runs a CUDA 12 build from PyTorch's own index.
cuda=$(nvidia-smi 2>/dev/null | sed -n 's/.*CUDA Version: *\([0-9]*\)\.\([0-9]\).*/\1\2/p' | head -1 || true)
if ! has_pinned_torch "$py" && [ -n "$cuda" ] && [ "$cuda" -lt 130 ]; then
    echo "the driver runs CUDA ${cuda:0:2}.${cuda:2}: looking for a build of torch $pin that it can use"
    for build in $(builds_for "$cuda"); do
        if "$py" -m pip install --quiet --retries 1 --index-url "https://download.pytorch.org/whl/$build" "torch==$pin" 2>/dev/null; then echo "took $build"; break; fi
    done
    has_pinned_torch "$py" || echo "none found; taking the default build, which may need a newer driver"
fi
scripts/install.sh requirements.txt
"$py" -m ipykernel install --sys-prefix >/dev/null # the pod's own Jupyter may have registered another python3
touch "$VENV/.installed"
scripts/chromium.sh --download || true

say "Doctor"
"$py" -m suite doctor --profile runpod || echo "(fix what is marked FAIL; JupyterLab starts all the same)"
if [ "$lab" = no ]; then say_next; exit 0; fi

say "JupyterLab"
state=$HOME/.local/state/sae_lib
mkdir -p "$state"
chmod 700 "$state"
pid=$(cat "$state/jupyter.pid" 2>/dev/null || true)
if [ -n "$pid" ] && grep -qs jupyterlab "/proc/$pid/cmdline"; then
    kill "$pid"
    for _ in $(seq 20); do kill -0 "$pid" 2>/dev/null || break; sleep 0.5; done
fi
answers() { "$py" -c 'import socket, sys; sys.exit(socket.socket().connect_ex(("127.0.0.1", int(sys.argv[1]))))' "$port"; }
if answers; then
    echo "port $port is taken, perhaps by the pod's own JupyterLab; stop that one, or use --port and expose the other port" >&2
    exit 1
fi
# The token goes by a file that only this user can read: not on a command line, not in the environment of kernels. An old file
# would keep its mode, and its readers.
rm -f "$state/token"
(umask 077 && "$py" -c 'import secrets; print(secrets.token_urlsafe(32), end="")' >"$state/token")
pod=${RUNPOD_POD_ID:-$(tr '\0' '\n' 2>/dev/null </proc/1/environ | sed -n 's/^RUNPOD_POD_ID=//p' || true)}
options=(--no-browser --ServerApp.port="$port" --ServerApp.port_retries=0 --ServerApp.root_dir="$PWD")
[ "$(id -u)" != 0 ] || options+=(--allow-root)
if [ -n "$pod" ]; then
    url=https://$pod-$port.proxy.runpod.net
    options+=(--ServerApp.ip=0.0.0.0 --ServerApp.allow_origin="$url")
else
    url=http://127.0.0.1:$port
    options+=(--ServerApp.ip=127.0.0.1)
fi
env -u JUPYTER_TOKEN -u JUPYTER_PASSWORD JUPYTER_TOKEN_FILE="$state/token" nohup setsid "$py" -m jupyterlab "${options[@]}" >"$state/jupyter.log" 2>&1 </dev/null &
echo $! >"$state/jupyter.pid"
for _ in $(seq 60); do
    if answers; then
        echo "$url/lab"
        echo "the token it asks for: cat $state/token"
        [ -n "$pod" ] || echo "from another machine: ssh -L $port:127.0.0.1:$port <this machine>, then the address above there"
        echo "(log: $state/jupyter.log; stop: kill \$(cat $state/jupyter.pid); a new run makes a new token)"
        say_next
        exit 0
    fi
    sleep 0.5
done
echo "JupyterLab did not answer on port $port within 30 s; the end of $state/jupyter.log:" >&2
tail -20 "$state/jupyter.log" >&2
exit 1

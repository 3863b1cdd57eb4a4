#!/usr/bin/env bash
# Makes sure that kaleido finds a browser to draw static figures with. Status 1, and one line, where it cannot.
# Without a network it gives up within minutes.
# Usage: scripts/chromium.sh [--download]      --download: also Google Chrome, where the system has no Chromium package
set -euo pipefail
cd "$(dirname "$0")/.."
python=${VENV:-.venv}/bin/python
chrome_deb=https://dl.google.com/linux/direct/google-chrome-stable_current_amd64.deb

found() { "$python" -c 'import sys; from choreographer.browsers.chromium import Chromium; sys.exit(not Chromium.find_browser(skip_local=False))' 2>/dev/null; }
as_root_with_apt() { [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; }
apt_install() {  # only the download has a limit: an installation that is cut short would leave packages half installed
    local apt=(apt-get install -y -qq --no-install-recommends "$@")
    export DEBIAN_FRONTEND=noninteractive
    timeout 300 "${apt[@]}" --download-only &>/dev/null && "${apt[@]}" >/dev/null
}

if found; then exit 0; fi
# Ubuntu's chromium package is an empty stub for a snap, which containers cannot run.
if as_root_with_apt; then
    echo "chromium: installing, for static figures"
    timeout 60 apt-get -o Acquire::Retries=0 -o Acquire::http::Timeout=10 update -qq &>/dev/null || true
    if ! grep -q '^ID=ubuntu' /etc/os-release; then
        apt_install chromium fonts-dejavu-core || true
    elif [ "${1:-}" = --download ] && [ "$(uname -m)" = x86_64 ]; then
        deb=$(mktemp --suffix=.deb)
        "$python" -c 'import sys, urllib.request; urllib.request.urlretrieve(*sys.argv[1:])' "$chrome_deb" "$deb" && chmod 644 "$deb" && apt_install "$deb" fonts-dejavu-core || true
        rm -f "$deb"
    fi
fi
if ! found && [ "${1:-}" = --download ]; then "$(dirname "$python")/kaleido_get_chrome" -y || true; fi
if ! found; then
    echo "chromium: none found, so figures are plainer ones; to fix it: apt-get install chromium (Debian), or $(dirname "$python")/kaleido_get_chrome" >&2
    exit 1
fi

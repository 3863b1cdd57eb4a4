"""Figures as PNG files: by Chromium, or else by matplotlib.

Chromium draws in a process of its own, within a deadline, and neither outlives its use. Run as a
program, this file is that process: a request per line on stdin, an answer per line on
stdout; its argument is how many seconds Chromium may take to start.
"""

import asyncio
import base64
import json
import logging
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import plotly.graph_objects as go

PROBE_SECONDS, DRAWING_SECONDS = 30, 60
STATE = "SAE_LIB_CHROMIUM"  # "works", or why not: found once, inherited by the notebooks' kernels
FIX = "apt-get install chromium (Debian), or .venv/bin/kaleido_get_chrome"

log = logging.getLogger(__name__)
_worker: subprocess.Popen | None = None


class ChromiumError(Exception):
    """There is no Chromium, or it did not draw: one line that says why."""


def save(fig: "go.Figure", folder: Path, name: str, width: int = 900, height: int = 450) -> Path:
    """Save as `<name>.png`: by Chromium, or else by matplotlib and as an interactive page too."""
    folder.mkdir(parents=True, exist_ok=True)
    path, page = folder / f"{name}.png", folder / f"{name}.html"
    if works():
        try:
            path.write_bytes(draw(fig.to_json(), width, height, DRAWING_SECONDS))
            page.unlink(missing_ok=True)
            return path
        except ChromiumError as error:
            give_up(error)
    from suite import plain_figures  # matplotlib takes a while to import

    plain_figures.draw(fig, path, width, height)
    fig.write_html(page, include_plotlyjs="directory")
    return path


def works() -> bool:
    """Whether Chromium draws: tried once. If it does not, one warning says why."""
    if STATE not in os.environ:
        if why := probe():
            give_up(why)
        else:
            os.environ[STATE] = "works"
    return os.environ[STATE] == "works"


def probe() -> str:
    """Draw an empty figure in a process of its own; returns why that failed, or ""."""
    try:
        draw('{"data": [], "layout": {}}', 64, 64, PROBE_SECONDS)
    except ChromiumError as error:
        return str(error)
    return ""


def prepare() -> None:
    """Let Chromium start beside other work, where it is not known to fail."""
    global _worker
    if os.environ.get(STATE, "works") == "works":
        _worker = _worker or _start()


def stop() -> None:
    """Let the drawing process end, and Chromium with it."""
    global _worker
    if _worker:
        with suppress(OSError):
            _worker.stdin.close()
    _worker = None


def give_up(why: object) -> None:
    """In this process, and in those that it starts from now on, Chromium counts as absent."""
    os.environ[STATE] = str(why)
    log.warning("Chromium draws no figures (%s), so they are plainer ones; to fix it: %s", why, FIX)


def draw(figure: str, width: int, height: int, seconds: int) -> bytes:
    """The PNG of a figure (plotly's JSON); `ChromiumError` where there is none after `seconds`."""
    global _worker
    _worker = _worker or _start()
    size = {"width": width, "height": height, "scale": 1, "format": "png"}
    answer = {"error": "its process ended without an answer"}
    try:
        _worker.stdin.write(f"[{figure}, {json.dumps(size)}, {seconds}]\n")
        _worker.stdin.flush()
        answer = json.loads(_worker.stdout.readline())
    except (OSError, ValueError):
        pass
    finally:  # after an error or Ctrl-C this process is not used again
        if "error" in answer:
            stop()
    if "error" in answer:
        raise ChromiumError(answer["error"])
    return base64.b64decode(answer["png"])


def _start() -> subprocess.Popen:
    """A new drawing process. It ends when its input does: with this process at the latest."""
    return subprocess.Popen(
        [sys.executable, "-P", "-X", "utf8", __file__, str(PROBE_SECONDS)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        encoding="utf-8",
        start_new_session=True,  # Ctrl-C is for the caller alone
    )


async def _serve(requests, answers) -> None:
    """Draw with one Chromium until there are no more requests."""
    import kaleido

    limit = int(sys.argv[1])
    signal.alarm(limit)
    async with kaleido.Kaleido(mathjax=False, timeout=None) as browser:  # no MathJax from the web
        signal.alarm(0)
        for request in iter(requests.readline, ""):
            figure, size, seconds = json.loads(request)
            signal.alarm(seconds)
            png = await browser.calc_fig(figure, opts=size)
            signal.alarm(0)
            print(json.dumps({"png": base64.b64encode(png).decode()}), file=answers, flush=True)
        signal.alarm(limit)  # closing takes its time as well


def _main() -> None:
    answers, sys.stdout = sys.stdout, sys.stderr

    def deadline(*_) -> None:
        """End Chromium with all its children, and this process: kaleido would wait for it."""
        import psutil

        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        print('{"error": "no picture in time"}', file=answers, flush=True)
        os._exit(1)

    signal.signal(signal.SIGALRM, deadline)
    try:
        asyncio.run(_serve(sys.stdin, answers))
    except Exception as error:
        why = f"{type(error).__name__}: {error.args[0] if error.args else ''}".split(". ")[0]
        print(json.dumps({"error": why}), file=answers, flush=True)


if __name__ == "__main__":
    _main()

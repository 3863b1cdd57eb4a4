"""`report.html`, one file that asks for nothing, and `report.pdf`, printed from it by Chromium where there is one."""

import logging
import os
import subprocess
import tempfile
from pathlib import Path

from sae_lib.text.markup import inert_html
from suite.runs import write_atomically

log = logging.getLogger(__name__)
PDF_SECONDS = 120
STYLE = (Path(__file__).parent / "style.css").read_text()
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
<nav>{contents}</nav>
<main>
{body}
</main>
</body>
</html>
"""


def html(text: str, folder: Path) -> str:
    """The report as one self-contained page; `folder` is where its `figures/` lie."""
    body, contents = inert_html(text, folder)
    title = next(
        (line[2:] for line in text.splitlines() if line.startswith("# ")), "report"
    ).replace("`", "")
    escaped = title.replace("&", "&amp;").replace("<", "&lt;")
    return PAGE.format(title=escaped, style=STYLE, contents=contents, body=body)


def find_chromium() -> str | None:
    """The browser that the figures are drawn with."""
    try:
        from choreographer.browsers.chromium import Chromium

        found = Chromium.find_browser(skip_local=False)
    except Exception:  # not installed, or another version's interface: as good as no browser
        return None
    return str(found) if found else None


def pdf(page: Path, out: Path) -> bool:
    """Print `page` to `out`; where that cannot be done, one line that says why and how to fix it, and False."""
    fix = "to fix it: apt-get install chromium (or .venv/bin/kaleido_get_chrome), then `python -m suite report`; or print report.html from a browser"
    browser = find_chromium()
    if browser is None:
        out.unlink(missing_ok=True)
        log.warning("no report.pdf: no Chromium found; %s", fix)
        return False
    with tempfile.TemporaryDirectory() as scratch:
        made = Path(scratch) / "report.pdf"
        command = [
            browser,
            "--headless",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-first-run",
            f"--user-data-dir={scratch}/profile",
        ]
        command += ["--no-sandbox"] if getattr(os, "geteuid", lambda: 1)() == 0 else []
        command += ["--no-pdf-header-footer", f"--print-to-pdf={made}", page.resolve().as_uri()]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=PDF_SECONDS)
            why = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        except (OSError, subprocess.TimeoutExpired) as error:
            why = (
                f"no page within {PDF_SECONDS} s"
                if isinstance(error, subprocess.TimeoutExpired)
                else str(error)
            )
        if not made.is_file() or not made.read_bytes().startswith(b"%PDF"):
            out.unlink(missing_ok=True)
            log.warning("no report.pdf: Chromium did not print (%s); %s", why, fix)
            return False
        write_atomically(out, made.read_bytes())
    return True

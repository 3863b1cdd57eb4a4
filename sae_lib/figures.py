"""One look for every plotly figure, and one place that saves them."""

import logging
import re
import warnings
from pathlib import Path

import kaleido
import plotly.graph_objects as go
import plotly.io as pio
from plotly.io._base_renderers import NotebookRenderer

PALETTE = ("#3b6fb6", "#d1603d", "#4a9c6d", "#8e5ea2", "#c9a227", "#5b6770", "#c2547d", "#2a9d9d")
pio.templates["sae_lib"] = go.layout.Template(
    layout=dict(
        colorway=PALETTE,
        font=dict(family="DejaVu Sans, Arial, sans-serif", size=14, color="#222"),
        title=dict(font=dict(size=17), x=0.02, xanchor="left"),
        paper_bgcolor="white",
        plot_bgcolor="white",
        xaxis=dict(
            gridcolor="#e8e8e8",
            zerolinecolor="#cccccc",
            linecolor="#888",
            ticks="outside",
            automargin=True,
        ),
        yaxis=dict(
            gridcolor="#e8e8e8",
            zerolinecolor="#cccccc",
            linecolor="#888",
            ticks="outside",
            automargin=True,
        ),
        margin=dict(l=70, r=30, t=70, b=60),
        legend=dict(bgcolor="rgba(255,255,255,0.8)"),
    )
)
pio.templates.default = "sae_lib"


class OfflineRenderer(NotebookRenderer):
    """plotly's notebook renderer, which carries plotly.js along, without its link to a MathJax on the web.

    A figure's width is its largest: in a narrower notebook it shrinks instead of being cut off.
    """

    def to_mimebundle(self, fig_dict):
        layout = dict(fig_dict.get("layout", {}))
        width = layout.pop("width", None)
        bundle = super().to_mimebundle(fig_dict | {"layout": layout | {"autosize": True}})
        html = re.sub(r'<script src="https?://[^"]*"[^>]*></script>', "", bundle["text/html"])
        return bundle | {
            "text/html": f'<div style="max-width:{width}px">{html}</div>' if width else html
        }


pio.renderers["offline"] = OfflineRenderer()
pio.renderers.default = "offline"

log = logging.getLogger(__name__)
_no_chromium = False


def save(fig: go.Figure, folder: Path, name: str, width: int = 900, height: int = 450) -> Path:
    """Save as `<name>.png` through Chromium; where there is none, as `<name>.html` beside one plotly.js, and say so once."""
    global _no_chromium
    folder.mkdir(parents=True, exist_ok=True)
    if not _no_chromium:
        try:
            kaleido.start_sync_server(
                silence_warnings=True
            )  # one Chromium for all figures of a notebook
            warnings.filterwarnings("ignore", message="The kopts argument")
            fig.write_image(folder / f"{name}.png", width=width, height=height, scale=1)
            return folder / f"{name}.png"
        except Exception as error:  # kaleido raises many kinds; all mean: no static picture here
            _no_chromium = True
            log.warning(
                "no PNG figures, interactive HTML instead: Chromium did not start (%s); to fix it: apt-get install chromium",
                str(error).strip().splitlines()[:1],
            )
    (folder / f"{name}.png").unlink(missing_ok=True)
    fig.write_html(folder / f"{name}.html", include_plotlyjs="directory")
    return folder / f"{name}.html"

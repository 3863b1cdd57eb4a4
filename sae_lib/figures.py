"""One look for every plotly figure, and how a notebook shows it."""

import re

import plotly.graph_objects as go
import plotly.io as pio
from plotly.io._base_renderers import NotebookRenderer

PALETTE = ("#3b6fb6", "#d1603d", "#4a9c6d", "#8e5ea2", "#c9a227", "#5b6770", "#c2547d", "#2a9d9d")
# A recipe, and what stands beside recipes, has one colour in every figure; grey is for nulls.
COLOURS = dict(
    bricken_2023=PALETTE[0],
    neurons=PALETTE[1],
    april_2024=PALETTE[2],
    jumprelu=PALETTE[3],
    topk=PALETTE[4],
    ward_2024="#7a4b2b",
    tied=PALETTE[6],
    batchtopk="#5ab4e5",
    matryoshka="#b5bd2b",
    SAELens="#222222",
)
AXIS = dict(
    gridcolor="#e8e8e8",
    zerolinecolor="#cccccc",
    linecolor="#888",
    ticks="outside",
    automargin=True,
)
pio.templates["sae_lib"] = go.layout.Template(
    layout=dict(
        colorway=PALETTE,
        font=dict(family="DejaVu Sans, Arial, sans-serif", size=14, color="#222"),
        title=dict(font=dict(size=17), x=0.02, xanchor="left"),
        paper_bgcolor="white",
        plot_bgcolor="white",
        xaxis=AXIS,
        yaxis=AXIS,
        margin=dict(l=70, r=30, t=70, b=60),
        legend=dict(bgcolor="rgba(255,255,255,0.8)"),
    )
)
pio.templates.default = "sae_lib"


def colour(name: str) -> str:
    """The colour of a recipe or baseline; variants, "topk, k = 8", have their recipe's. Others are
    grey.
    """
    return next((COLOURS[known] for known in COLOURS if name.startswith(known)), PALETTE[5])


NO_MATHEMATICS = "tex2jax_ignore mathjax_ignore"  # MathJax leaves elements of these classes alone
# In JupyterLab's dark theme a white figure turns dark; its hues stay.
DARK = (
    '<style>[data-jp-theme-light="false"] .on-white '
    "{ filter: invert(0.93) hue-rotate(180deg) }</style>"
)


class OfflineRenderer(NotebookRenderer):
    """plotly's notebook renderer, which carries plotly.js along, without its link to a MathJax on
    the web.

    A figure's width is its largest: in a narrower notebook it shrinks instead of being cut off.
    """

    def to_mimebundle(self, fig_dict):
        layout = dict(fig_dict.get("layout", {}))
        width = layout.pop("width", None)
        bundle = super().to_mimebundle(fig_dict | {"layout": layout | {"autosize": True}})
        html = re.sub(r'<script src="https?://[^"]*"[^>]*></script>', "", bundle["text/html"])
        most = f' style="max-width:{width}px"' if width else ""
        html = f'<div class="{NO_MATHEMATICS} on-white"{most}>{html}</div>{DARK}'
        return bundle | {"text/html": html}


pio.renderers["offline"] = OfflineRenderer()
pio.renderers.default = "offline"

"""Figures of tables: `charts.yaml` lists how each is drawn, by plotly express, and its looks."""

from pathlib import Path
from typing import Any

import pandas as pd
import plotly.express as px
import plotly.graph_objects as go
import yaml

CHARTS = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text("utf-8"))
# What is of no recipe: the language model; what takes away, where blue adds; features beside one.
MODEL, AGAINST, OTHERS = "#12355b", "#a9b4c0", "#93b1de"


def chart(name: str, table: pd.DataFrame, **more: Any) -> go.Figure:
    """The figure of that name; `more` are further arguments of plotly express, such as colours."""
    spec = CHARTS[name]
    fig = getattr(px, spec["draw"])(table, **spec["of"] | more)
    # plotly's headings of panels are `column=value`: leave the value, which may hold "=" too
    fig.for_each_annotation(lambda note: note.update(text=note.text.partition("=")[2]))
    for part in ("xaxes", "yaxes", "traces", "layout"):
        getattr(fig, f"update_{part}")(spec.get(part))
    return fig

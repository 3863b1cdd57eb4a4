"""The report's first figure: how dense neurons and features are, and where three named features
lie.
"""

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from sae_lib.formats import exact, percent
from suite.charts import chart
from suite.report.content import NAMES, cards_of

SHOWN = 3
HEIGHTS = (0.99, 0.89, 0.79)  # of the names, as shares of the figure's height


def named_densities(
    evaluation: dict[str, Any], main: str, gallery: dict[str, Any]
) -> go.Figure | None:
    """The densities of those alive; None where no features of these weights have names."""
    names = NAMES.get(gallery["autoencoder"], {"features": {}})["features"]
    cards = [card for card in cards_of(gallery) if card["feature"] in names][:SHOWN]
    if not cards:
        return None
    found = {"features": evaluation[main], "neurons": evaluation["neurons"]}
    table = pd.concat(
        pd.DataFrame({"density": np.array(of["density"]), "kind": kind})
        for kind, of in found.items()
    ).query("density > 0")
    neurons, features = (percent(found[of]["density_median"]) for of in ("neurons", "features"))
    title = f"The median neuron fires on {neurons} of tokens, the median feature on {features}"
    fig = chart("named_densities", table.assign(log=np.log10(table["density"])), title=title)
    ticks = range(-5, 1)
    fig.update_xaxes(tickvals=list(ticks), ticktext=[f"{exact(100 * 10.0**t)} %" for t in ticks])
    density = np.array(found["features"]["density"])
    rarest_first = sorted(cards, key=lambda card: density[card["feature"]])
    for card, height in zip(rarest_first, HEIGHTS, strict=False):  # no line crosses a name
        at = density[card["feature"]]
        place = {"x0": np.log10(at), "x1": np.log10(at), "y0": 0, "y1": height, "yref": "paper"}
        fig.add_shape(type="line", line={"dash": "dot", "width": 1.5}, **place)
        fig.add_annotation(
            x=np.log10(at),
            y=height,
            yref="paper",
            text=f" {names[card['feature']][0]} ({percent(at)})",
            showarrow=False,
            xanchor="left",
            yanchor="top",
            font_size=12,
        )
    return fig

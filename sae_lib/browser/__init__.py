"""Look at features: a widget for JupyterLab, static pages, and a gallery for the report, all from one template."""

from sae_lib.browser.clamp_panel import clamp
from sae_lib.browser.context import whole_context
from sae_lib.browser.page import percent, static
from sae_lib.browser.random_draw import gallery, markdown
from sae_lib.browser.rating import rating_histogram
from sae_lib.browser.try_text import own_text
from sae_lib.browser.widget import FeatureBrowser, widget

__all__ = [
    "FeatureBrowser",
    "clamp",
    "gallery",
    "markdown",
    "own_text",
    "percent",
    "rating_histogram",
    "static",
    "whole_context",
    "widget",
]

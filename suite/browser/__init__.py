"""Look at features: a widget for JupyterLab, static pages, and a gallery for the report, all from one template."""

from suite.browser.clamp_panel import clamp
from suite.browser.context import whole_context
from suite.browser.page import percent, static
from suite.browser.random_draw import gallery, markdown
from suite.browser.rating import rating_histogram
from suite.browser.try_text import own_text
from suite.browser.widget import FeatureBrowser, widget

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

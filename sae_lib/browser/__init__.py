"""Look at features: a widget for JupyterLab, static pages, and a gallery for the report, all from one template."""

from sae_lib.browser.page import percent, static
from sae_lib.browser.random_draw import gallery, markdown
from sae_lib.browser.widget import FeatureBrowser, widget

__all__ = ["FeatureBrowser", "gallery", "markdown", "percent", "static", "widget"]

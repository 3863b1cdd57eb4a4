"""Figures: PNG through Chromium, HTML without it, and nothing that asks a network."""

import plotly.express as px
import plotly.io as pio

from sae_lib import figures


def test_without_chromium_the_figure_is_interactive_html_and_one_line_says_so(
    tmp_path, monkeypatch, caplog
):
    def broken(*_, **__):
        raise RuntimeError("no browser here")

    monkeypatch.setattr(figures, "_no_chromium", False)
    monkeypatch.setattr("plotly.graph_objects.Figure.write_image", broken)
    for name in ("a", "b"):
        path = figures.save(px.line(x=[1, 2], y=[1, 2]), tmp_path, name)
        assert path == tmp_path / f"{name}.html"
    assert len(caplog.records) == 1 and "apt-get install chromium" in caplog.text
    html = (tmp_path / "a.html").read_text()
    assert (
        "cdn" not in html.lower()
        and 'src="plotly.min.js"' in html
        and (tmp_path / "plotly.min.js").exists()
    )


def test_a_figure_in_a_notebook_asks_no_network():
    html = pio.renderers[pio.renderers.default].to_mimebundle(
        px.line(x=[1, 2], y=[1, 2]).to_dict()
    )["text/html"]
    assert "Plotly.newPlot" in html and "<script src=" not in html and "cdnjs" not in html


def test_a_wide_figure_shrinks_with_the_notebook():
    html = pio.renderers[pio.renderers.default].to_mimebundle(
        px.line(x=[1, 2], y=[1, 2], width=1100).to_dict()
    )["text/html"]
    assert html.startswith('<div style="max-width:1100px">') and '"width":1100' not in html.replace(
        " ", ""
    )

"""Figures: what matplotlib makes of them where there is no browser, and nothing that asks a
network.
"""

import re

import pandas as pd
import plotly.express as px
import plotly.graph_objects as go
import plotly.io as pio
import pytest
from plotly.subplots import make_subplots

from sae_lib import figures  # noqa: F401  (sets the template and the renderer)
from suite import plain_figures


def drawn(fig: go.Figure) -> list:
    """matplotlib's axes for this figure, subplot by subplot."""
    fig.update_layout(template="sae_lib")
    return list(plain_figures.Picture(fig, 600, 400).axes.values())


def heights(ax) -> list[float]:
    return [round(bar.get_height(), 6) for bar in ax.patches]


def test_a_line_has_its_data_and_its_logarithmic_axis_its_ticks():
    fig = px.line(x=[1, 10, 100], y=[3, 1, 2], log_x=True).update_xaxes(
        tickvals=[1, 100], ticktext=["one", "$100 <b>a</b> &amp; b"], title="x<br>y"
    )
    fig.add_annotation(x=2, y=2, text="t", showarrow=False)
    (ax,) = drawn(fig.update_yaxes(range=[0, 9]))
    assert ax.lines[0].get_xydata().tolist() == [[1, 3], [10, 1], [100, 2]]
    assert ax.figure.texts[-1].get_position() == (100, 2)  # plotly gives the exponent
    assert (ax.get_xscale(), ax.get_ylim(), ax.get_xlabel()) == ("log", (0, 9), "x\ny")
    labels = [t.get_text() for t in ax.get_xticklabels()]
    assert labels == ["one", r"\$100 a & b"]


def test_markers_have_their_colours_and_symbols():
    marker = dict(color=["#ff0000", "rgba(0,255,0,0.5)"], symbol=["star", "circle"], size=10)
    fig = go.Figure(go.Scatter(x=[1, 2], y=[3, 4], mode="markers", marker=marker))
    star, circle = drawn(fig)[0].collections
    assert star.get_offsets().tolist() == [[1, 3]] and circle.get_offsets().tolist() == [[2, 4]]
    assert star.get_facecolor().tolist() == [[1, 0, 0, 1]]
    assert circle.get_facecolor().tolist() == [[0, 1, 0, 0.5]]
    assert len(star.get_paths()[0].vertices) != len(circle.get_paths()[0].vertices)


def test_bars_stand_side_by_side_or_on_each_other():
    fig = go.Figure([go.Bar(x=["a", "b"], y=[1, 2]), go.Bar(x=["a", "b"], y=[3, -4])])
    (ax,) = drawn(fig)
    assert heights(ax) == [1, 2, 3, -4]
    centres = [round(bar.get_x() + bar.get_width() / 2, 6) for bar in ax.patches]
    assert centres == [-0.2, 0.8, 0.2, 1.2]
    (ax,) = drawn(fig.update_layout(barmode="relative"))
    assert [bar.get_y() for bar in ax.patches] == [0, 0, 1, 0]
    (ax,) = drawn(go.Figure(go.Bar(x=[5, 6], y=[0, 1], orientation="h")))
    assert [bar.get_width() for bar in ax.patches] == [5, 6]


def test_bars_have_their_error_bars():
    error = dict(type="data", array=[1, 2], arrayminus=[0.5, 1])
    (ax,) = drawn(go.Figure(go.Bar(x=["a", "b"], y=[3, 4], error_y=error)))
    (lines,) = ax.collections
    assert [segment[:, 1].tolist() for segment in lines.get_segments()] == [[2.5, 4], [3, 6]]


def test_a_histogram_counts():
    values = [0.1, 0.2, 0.3, 0.6]
    (ax,) = drawn(go.Figure(go.Histogram(x=values, xbins=dict(start=0, end=1, size=0.5))))
    assert heights(ax) == [3, 1]
    (ax,) = drawn(go.Figure(go.Histogram(x=values, nbinsx=2, histnorm="percent")))
    assert heights(ax) == [75, 25]


def test_a_heatmap_lies_in_its_subplot_with_its_colours():
    fig = make_subplots(1, 2, subplot_titles=["left", "right"])
    fig.add_heatmap(z=[[0, 1], [1, 0]], colorscale=[[0, "#000000"], [1, "#ffffff"]], row=1, col=2)
    fig.add_scatter(y=[1, 2], row=1, col=1)
    right, left = drawn(fig.update_yaxes(autorange="reversed", row=1, col=2))
    assert right.get_position().x0 > left.get_position().x1
    mesh = right.collections[0]
    mesh.update_scalarmappable()
    assert mesh.get_facecolor()[:, 0].tolist() == [0, 1, 1, 0]
    assert right.get_ylim() == (1.5, -0.5)
    fig = go.Figure(go.Heatmap(x=[1, 100], z=[[0, 1], [1, 0]], colorscale=fig.data[0].colorscale))
    fig.update_xaxes(type="log")
    cells = drawn(fig)[0].collections[0].get_coordinates()
    assert cells[0, :, 0].round(6).tolist() == [0.1, 10, 1000]  # as they are seen


def test_boxes_lines_and_texts_are_where_they_belong():
    fig = go.Figure(go.Violin(x=[1, 2, 3, 4, 9], name="v", orientation="h"))
    fig.add_vline(5, line_dash="dot", annotation_text="five")
    picture = plain_figures.Picture(fig.update_layout(template="sae_lib", title="T"), 600, 400)
    (ax,) = picture.axes.values()
    at = [list(line.get_xdata()) for line in ax.lines]
    assert [5, 5] in at and [3, 3] in at  # the line and the median
    assert {t.get_text() for t in picture.picture.texts} == {"T", "five"}
    assert picture.picture.texts[1].get_position()[0] == 5


def test_a_line_of_the_papers_height_ends_there():
    fig = go.Figure(go.Bar(x=[1, 2], y=[3, 4]))
    fig.add_shape(type="line", x0=2, x1=2, y0=0, y1=0.7, yref="paper", line_dash="dot")
    (ax,) = plain_figures.Picture(fig.update_layout(template="sae_lib"), 600, 400).axes.values()
    (line,) = ax.lines
    assert list(line.get_xdata()) == [2, 2] and list(line.get_ydata()) == [0, 0.7]


@pytest.mark.parametrize(
    ("form", "said"), [("~s", "2k"), (".0%", "200000%"), (",", "2,000"), (".4~g", "2000")]
)
def test_ticks_are_written_as_plotly_writes_them(form, said):
    fig = px.line(x=[1, 2], y=[1000, 2000]).update_yaxes(tickformat=form, range=[0, 3000])
    axis = drawn(fig)[0].yaxis
    assert axis.get_major_formatter()(2000).strip() == said


def test_axes_that_match_share_their_range_and_names_make_a_legend():
    fig = make_subplots(1, 2, shared_yaxes=True)
    fig.add_scatter(y=[0, 1], name="one", row=1, col=1)
    fig.add_scatter(y=[0, 8], name="two", showlegend=False, row=1, col=2)
    fig.add_scatter(y=[0, 8], name="three", row=1, col=2)
    picture = plain_figures.Picture(fig.update_layout(template="sae_lib"), 600, 400)
    left, right = picture.axes.values()
    assert left.get_ylim() == right.get_ylim() and left.get_ylim()[1] > 8
    assert [t.get_text() for t in picture.picture.legends[0].get_texts()] == ["one", "three"]


def test_an_unknown_trace_is_an_error_and_no_empty_picture():
    with pytest.raises(AttributeError, match="Pie"):
        drawn(go.Figure(go.Pie(values=[1])))


def test_a_figure_in_a_notebook_asks_no_network():
    html = pio.renderers[pio.renderers.default].to_mimebundle(
        px.line(x=[1, 2], y=[1, 2]).to_dict()
    )["text/html"]
    assert "Plotly.newPlot" in html and "<script src=" not in html and "cdnjs" not in html


def test_a_wide_figure_shrinks_with_the_notebook():
    html = pio.renderers[pio.renderers.default].to_mimebundle(
        px.line(x=[1, 2], y=[1, 2], width=1100).to_dict()
    )["text/html"]
    assert html.startswith(
        '<div class="tex2jax_ignore mathjax_ignore on-white" style="max-width:1100px">'
    ) and '"width":1100' not in html.replace(" ", "")


def test_a_figure_is_dark_where_jupyterlab_is(tab):
    bundle = pio.renderers[pio.renderers.default].to_mimebundle(px.line(x=[1], y=[1]).to_dict())
    html = re.sub("<script.*?</script>", "", bundle["text/html"], flags=re.DOTALL)
    for light, filtered in (("true", False), ("false", True)):
        tab.set_content(f'<body data-jp-theme-light="{light}">{html}</body>')
        script = "getComputedStyle(document.querySelector('.on-white')).filter"
        assert (tab.evaluate(script) != "none") == filtered


def test_names_that_a_panel_lacks_keep_their_places_in_it():
    """Matplotlib numbers names in the order of their appearance, in each panel by itself."""
    data = pd.DataFrame({"of": ["a", "b", "c", "a", "c"], "panel": [1, 1, 1, 2, 2]})
    data = data.assign(x=range(5), half=0.5)
    order = {"of": ["a", "b", "c"]}
    fig = px.scatter(data, "x", "of", facet_col="panel", category_orders=order, error_x="half")
    first, second = drawn(fig)
    shown = {label.get_text(): label.get_position()[1] for label in first.get_yticklabels()}
    places = [place for _, place in second.collections[0].get_offsets()]
    assert places == [shown["a"], shown["c"]] and shown["a"] > shown["b"] > shown["c"]
    (bars,) = second.containers
    ends = bars.lines[2][0].get_segments()
    assert [segment[:, 0].tolist() for segment in ends] == [[2.5, 3.5], [3.5, 4.5]]

"""plotly figures drawn by matplotlib, where there is no browser: plainer, with the same data, axes and texts.

It knows what this project's figures consist of: scatter, bar, histogram, heatmap and violin traces, straight lines, texts.
A trace of any other type raises AttributeError: nothing is left out silently.
"""

import re
import warnings
from html import unescape
from pathlib import Path

import matplotlib as mpl
import numpy as np
import plotly.graph_objects as go
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize, to_rgba
from matplotlib.figure import Figure
from matplotlib.transforms import blended_transform_factory

DPI = 100
POINT = 72 / DPI  # points in a pixel
STYLE = {
    "font.family": "DejaVu Sans",  # matplotlib brings it along
    "font.size": 12 * POINT,
    "figure.titlesize": 17 * POINT,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.edgecolor": "#dddddd",
    "grid.color": "#e8e8e8",
    "errorbar.capsize": 2,
}
DASHES = {None: "-", "solid": "-", "dot": ":", "dash": "--"}
SYMBOLS = {"square": "s", "diamond": "D", "x": "x", "star": "*"}


def draw(fig: go.Figure, path: Path, width: int, height: int) -> None:
    """Write `fig` as a PNG of about this size; what lies outside the margins makes it larger."""
    with mpl.rc_context(STYLE), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of scripts without glyphs, and of axes with one value
        Picture(fig, width, height).picture.savefig(path, dpi=DPI, bbox_inches="tight")


def plain(markup: str | None) -> str:
    """plotly's markup as plain lines; a dollar sign begins no formula."""
    lines = (markup or "").replace("<br>", "\n").replace("<sup>", "^")
    lines = unescape(re.sub("<[^>]*>", "", lines)).replace("$", r"\$")
    return re.sub("[\u2066-\u2069]", "", lines)  # marks of direction have no glyph


def rgba(colour: str, opacity: float | None = None) -> tuple[float, ...]:
    """A colour in plotly's notation, each part from 0 to 1."""
    parts = [float(n) for n in re.findall(r"[\d.]+", colour)] if colour[:3] == "rgb" else []
    *rgb, alpha = [*np.divide(parts[:3], 255), *parts[3:], 1][:4] if parts else to_rgba(colour)
    return (*rgb, alpha * (1 if opacity is None else opacity))


def numbers(axis, values) -> np.ndarray:
    """Places on an axis; words become categories, in the order in which they come."""
    axis.update_units(values)
    return np.array(axis.convert_units(values), float)


def points(ax: Axes, trace) -> tuple[np.ndarray, np.ndarray]:
    """x and y of a trace; where only one is given, the other counts."""
    n = len(trace.y if trace.x is None else trace.x)
    x, y = (range(n) if values is None else values for values in (trace.x, trace.y))
    return numbers(ax.xaxis, x), numbers(ax.yaxis, y)


def edges(centres, log: bool) -> np.ndarray:
    """Where cells around these centres, two or more, meet: halfway as it is seen on the axis."""
    at = np.log10(centres) if log else np.array(centres, float)
    middle = (at[1:] + at[:-1]) / 2
    ends = np.array([2 * at[0] - middle[0], *middle, 2 * at[-1] - middle[-1]])
    return 10**ends if log else ends


class Picture:
    """One figure on its way: `picture` is matplotlib's, `axes` its axes by plotly's two names."""

    def __init__(self, fig: go.Figure, width: int, height: int):
        self.fig, self.axes, self.shared, self.piles = fig, {}, {}, {}
        self.picture = Figure((width / DPI, height / DPI))
        layout, top = fig.layout, 1 - (fig.layout.margin.t or 70) / height
        self.box = (0.08, 0.14, 0.88, top - 0.14)
        self.paper = self.picture.add_axes(self.box, frameon=False, xticks=[], yticks=[])
        self.picture.suptitle(plain(layout.title.text), x=0.02, ha="left")
        colours = layout.template.layout.colorway
        for i, trace in enumerate(fig.data):
            ax = self.subplot(trace.xaxis or "x", trace.yaxis or "y")
            ax.set_label("_" if trace.showlegend is False else plain(trace.name))
            getattr(self, trace.type)(ax, trace, colours[i % len(colours)])
        for shape in layout.shapes:  # straight lines across one subplot
            x, y = (ref.split()[0] for ref in (shape.xref, shape.yref))
            how = dict(color=shape.line.color or "#444444", linestyle=DASHES[shape.line.dash])
            if shape.x0 == shape.x1:
                self.axes[x, y].axvline(shape.x0, **how)
            else:
                self.axes[x, y].axhline(shape.y0, **how)
        for names, ax in self.axes.items():
            for name in names:
                self.dress(ax, name)
        for note in layout.annotations:
            self.note(note)
        shown = [
            trace.showlegend for trace in fig.data if trace.showlegend is not False and trace.name
        ]
        if len(shown) > 1 or any(shown):
            self.picture.legend(loc="upper left", bbox_to_anchor=(1.02, top), edgecolor="none")

    def spec(self, name: str):
        """plotly's axis of this name: x, y, x2 …"""
        return self.fig.layout[f"{name[0]}axis{name[1:]}"]

    def subplot(self, x: str, y: str) -> Axes:
        """The axes that these two span; those that match share their range."""
        if (x, y) not in self.axes:
            (x0, x1), (y0, y1) = (self.spec(name).domain or (0, 1) for name in (x, y))
            left, bottom, width, height = self.box
            roots = [self.spec(name).matches or name for name in (x, y)]
            ax = self.axes[x, y] = self.picture.add_axes(
                (left + x0 * width, bottom + y0 * height, (x1 - x0) * width, (y1 - y0) * height),
                sharex=self.shared.get(roots[0]),
                sharey=self.shared.get(roots[1]),
            )
            self.shared = dict.fromkeys(roots, ax) | self.shared
            ax.set_xscale("log" if self.spec(x).type == "log" else "linear")
            ax.set_yscale("log" if self.spec(y).type == "log" else "linear")
        return self.axes[x, y]

    def scatter(self, ax: Axes, trace, default: str) -> None:
        line, marker, (x, y) = trace.line, trace.marker, points(ax, trace)
        n = len(x)
        mode = trace.mode or ("lines+markers" if n < 20 else "lines")
        colours = (
            [marker.color or line.color or default]
            if isinstance(marker.color, str | None)
            else marker.color
        )
        colour = line.color or colours[0]
        stroke = dict(
            color=rgba(colour),
            linestyle=DASHES[line.dash],
            linewidth=(line.width or 2) * POINT,
        )
        symbols = marker.symbol if isinstance(marker.symbol, tuple) else [marker.symbol] * n
        if trace.fill:
            ax.fill(x, y, color=rgba(trace.fillcolor, trace.opacity), linewidth=0)
        if "arrow" in symbols:
            arrow = stroke | dict(arrowstyle="-|>", shrinkA=0, shrinkB=0)
            ax.annotate("", (x[-1], y[-1]), (x[0], y[0]), arrowprops=arrow)
            return
        if "lines" in mode:
            ax.plot(x, y, label=ax.get_label(), **stroke)
        if "markers" in mode:
            shades = np.resize([rgba(c, marker.opacity) for c in colours], (n, 4))
            for symbol in dict.fromkeys(symbols):
                at = np.array([s == symbol for s in symbols])
                size = ((marker.size or 6) * POINT) ** 2
                dots = ax.scatter(x[at], y[at], size, shades[at], marker=SYMBOLS.get(symbol, "o"))
                dots.set(label="_" if "lines" in mode else ax.get_label(), zorder=3)
        if (up := trace.error_y.array) is not None:
            down = up if trace.error_y.arrayminus is None else trace.error_y.arrayminus
            ax.errorbar(x, y, np.array([down, up], float), fmt="none", ecolor=stroke["color"])

    def bar(self, ax: Axes, trace, default: str) -> None:
        at, length = points(ax, trace)
        flat, draw_bars = trace.orientation == "h", ax.bar
        if flat:
            at, length, draw_bars = length, at, ax.barh
        mode, gap = self.fig.layout.barmode or "group", self.fig.layout.bargap
        beside = [t for t in self.fig.data if t.type == "bar" and t.xaxis == trace.xaxis]
        beside = beside if mode == "group" else [trace]
        width = (0.8 if gap is None else 1 - gap) / len(beside)
        at = at + ([t is trace for t in beside].index(True) - (len(beside) - 1) / 2) * width
        below = np.zeros(len(at))
        if mode in ("stack", "relative"):  # what is negative piles up downwards
            for i, pile in enumerate(zip([ax] * len(at), at, length < 0, strict=True)):
                below[i] = self.piles.get(pile, 0)
                self.piles[pile] = below[i] + length[i]
        colour, marker = rgba(default), trace.marker
        if isinstance(marker.color, str):
            colour = rgba(marker.color, trace.opacity)
        elif marker.color is not None:
            shades = self.shades(ax, marker, marker.cmin, marker.cmax, marker.showscale)
            colour = shades.to_rgba(np.array(marker.color))
        draw_bars(at, length, width, below, color=colour, label=ax.get_label())

    def histogram(self, ax: Axes, trace, default: str) -> None:
        x, bins = np.array(trace.x, float), trace.xbins
        weights = np.full(len(x), 100 / len(x)) if trace.histnorm == "percent" else None
        edges = (
            np.arange(bins.start, bins.end + bins.size / 2, bins.size)
            if bins.size
            else trace.nbinsx
        )
        colour = rgba(trace.marker.color or default, trace.opacity)
        ax.hist(x, edges, weights=weights, color=colour, label=ax.get_label())

    def heatmap(self, ax: Axes, trace, default: str) -> None:
        z = np.array(trace.z, float)
        x = edges(range(z.shape[1]) if trace.x is None else trace.x, ax.get_xscale() == "log")
        y = edges(range(z.shape[0]) if trace.y is None else trace.y, ax.get_yscale() == "log")
        shades = self.shades(ax, trace, trace.zmin, trace.zmax, trace.showscale is not False)
        ax.pcolormesh(x, y, z, cmap=shades.cmap, norm=shades.norm, edgecolor="face")

    def shades(
        self, ax: Axes, spec, low: float | None, high: float | None, bar: bool
    ) -> ScalarMappable:
        """Numbers as colours, by a trace's colour scale, with a colour bar where it has one."""
        stops = [(at, rgba(colour)) for at, colour in spec.colorscale]
        shades = ScalarMappable(Normalize(low, high), LinearSegmentedColormap.from_list("", stops))
        if bar:
            self.picture.colorbar(shades, ax=ax, label=plain(spec.colorbar.title.text))
        return shades

    def violin(self, ax: Axes, trace, default: str) -> None:
        """A box for the middle half of the values, their median, and whiskers to the most distant."""
        at, x = numbers(ax.yaxis, [trace.name]), np.array(trace.x, float)
        line = dict(color=rgba(trace.line.color or default))
        styles = dict(boxprops=line, whiskerprops=line, capprops=line, medianprops=line)
        ax.boxplot(
            [x[np.isfinite(x)]],
            positions=at,
            orientation="horizontal",
            whis=(0, 100),
            manage_ticks=False,
            **styles,
        )

    def dress(self, ax: Axes, name: str) -> None:
        """Range, ticks, labels, title and grid of one axis."""
        spec, which = self.spec(name), name[0]
        axis, log = getattr(ax, f"{which}axis"), spec.type == "log"
        low, high = sorted(axis.get_view_interval())
        if ends := spec.range or self.spec(spec.matches or name).range:
            low, high = (10.0**end if log else end for end in ends)
        elif spec.rangemode == "tozero":
            low = min(low, 0)
        ax.set(**{f"{which}lim": (high, low) if spec.autorange == "reversed" else (low, high)})
        if spec.tickformat:
            axis.set_major_formatter("{x:" + spec.tickformat.replace("~", "") + "}")
        if spec.tickvals is not None:
            ax.minorticks_off()
            texts = spec.ticktext or [f"{at:g}" for at in spec.tickvals]
            axis.set_ticks(spec.tickvals, [plain(text) for text in texts])
        if spec.showticklabels is False or spec.visible is False:
            axis.set_tick_params(length=0, labelbottom=False, labelleft=False)
        axis.set_tick_params(which="both", color="#cccccc", labelrotation=-(spec.tickangle or 0))
        axis.grid(spec.showgrid is not False and spec.visible is not False)
        axis.set_label_text(plain(spec.title.text))
        for side in ("bottom", "top") if which == "x" else ("left", "right"):
            ax.spines[side].set_visible(bool(spec.showline))
        if spec.scaleanchor:
            ax.set_aspect("equal")

    def along(self, ref: str):
        """What a position is measured by: the paper, an axis ("x2") or its length ("x2 domain")."""
        name, _, domain = ref.partition(" ")
        ax = next((ax for names, ax in self.axes.items() if name in names), self.paper)
        return ax.transAxes if domain or name == "paper" else ax.transData

    def note(self, note) -> None:
        """A text at its place; on a logarithmic axis plotly gives the exponent."""
        refs = note.xref or "x", note.yref or "y"
        x, y = (
            10.0**at if ref[0] != "p" and " " not in ref and self.spec(ref).type == "log" else at
            for at, ref in zip((note.x, note.y), refs, strict=True)
        )
        text = self.picture.text(x, y, plain(note.text))
        text.set_transform(blended_transform_factory(*(self.along(ref) for ref in refs)))
        text.set(
            ha=note.xanchor or "center", va=(note.yanchor or "center").replace("middle", "center")
        )
        text.set_rotation(-(note.textangle or 0))
        text.set(size=(note.font.size or 14) * POINT, color=note.font.color or "#222222")
        if note.bgcolor:
            text.set_bbox(dict(facecolor=rgba(note.bgcolor), linewidth=0, pad=1))

"""plotly figures drawn by matplotlib, where there is no browser: plainer, with the same data, axes
and texts.

It knows what this project's figures consist of: scatter, bar, histogram, heatmap and violin traces,
straight lines, texts. A trace of any other type raises AttributeError: nothing is left out
silently.
"""

import re
import warnings
from collections import defaultdict
from html import unescape
from pathlib import Path

import matplotlib as mpl
import numpy as np
import plotly.graph_objects as go
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize, to_rgba
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter
from matplotlib.transforms import blended_transform_factory

DPI = 100
POINT = 72 / DPI  # points in a pixel
STYLE = Path(__file__).with_suffix(".mplstyle")
DASHES = {None: "-", "solid": "-", "dot": ":", "dash": "--"}
# of any other kind, such as the head of an arrow, a disc is drawn
SYMBOLS = {"square": "s", "diamond": "D", "x": "x", "star": "*"}


def draw(fig: go.Figure, path: Path, width: int, height: int) -> None:
    """Write `fig` as a PNG of about this size; what lies outside the margins makes it larger."""
    with mpl.rc_context(fname=STYLE), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of scripts without glyphs, and of axes with one value
        Picture(fig, width, height).picture.savefig(path, dpi=DPI, bbox_inches="tight")


def plain(markup: str | None) -> str:
    """plotly's markup as plain lines; a dollar sign begins no formula."""
    lines = (markup or "").replace("<br>", "\n").replace("<sup>", "^")
    lines = unescape(re.sub("<[^>]*>", "", lines)).replace("$", r"\$")
    return re.sub("[\u2066-\u2069]", "", lines)  # marks of direction have no glyph


def rgba(colour: str, opacity: float | None = None) -> tuple[float, ...]:
    """A colour in plotly's notation, each part from 0 to 1."""
    if colour.startswith("rgb"):
        *rgb, alpha = [*map(float, re.findall(r"[\d.]+", colour)), 1][:4]
        colour = (*np.divide(rgb, 255), alpha)
    *rgb, alpha = to_rgba(colour)
    return (*rgb, alpha * (1 if opacity is None else opacity))


def points(ax: Axes, trace) -> list[np.ndarray]:
    """Where a trace is on either axis; words become categories. Where one is missing, the other
    counts.
    """
    n, places = len(trace.y if trace.x is None else trace.x), []
    for axis, values in ((ax.xaxis, trace.x), (ax.yaxis, trace.y)):
        values = range(n) if values is None else values
        axis.update_units(values)
        places.append(np.array(axis.convert_units(values), float))
    return places


def edges(centres, log: bool) -> np.ndarray:
    """Where cells around these centres, two or more, meet: halfway as it is seen on the axis."""
    at = np.array(np.log10(centres) if log else centres, float)
    at = np.pad(at, 1, "reflect", reflect_type="odd")
    middle = (at[1:] + at[:-1]) / 2
    return 10**middle if log else middle


class Picture:
    """One figure on its way: `picture` is matplotlib's, `axes` its axes by plotly's two names."""

    def __init__(self, fig: go.Figure, width: int, height: int):
        self.fig, self.axes, self.shared, self.piles = fig, {}, {}, defaultdict(float)
        self.picture = Figure((width / DPI, height / DPI))
        layout, top = fig.layout, 1 - (fig.layout.margin.t or 70) / height
        self.box = (0.08, 0.14, 0.88, top - 0.14)
        self.paper = self.picture.add_axes(self.box, frameon=False, xticks=[], yticks=[])
        self.picture.suptitle(plain(layout.title.text), x=0.02, ha="left")
        colours = layout.template.layout.colorway
        for i, trace in enumerate(fig.data):
            ax = self.subplot(trace.xaxis or "x", trace.yaxis or "y")
            label = "_" if trace.showlegend is False else plain(trace.name)
            getattr(self, trace.type)(ax, trace, colours[i % len(colours)], label)
        for shape in layout.shapes:  # straight lines across one subplot, or up to a height of it
            on = {(shape.xref or "x").split()[0], (shape.yref or "y").split()[0]} - {"paper"}
            ax = next(ax for names, ax in self.axes.items() if on <= set(names))
            look = {"color": shape.line.color or "#444444", "linestyle": DASHES[shape.line.dash]}
            if shape.x0 == shape.x1:
                ax.axvline(shape.x0, ymax=shape.y1, **look)
            else:
                ax.axhline(shape.y0, **look)
        for names, ax in self.axes.items():
            for name in names:
                self.dress(ax, name)
        for note in layout.annotations:
            self.note(note)
        shown = [t.showlegend for t in fig.data if t.showlegend is not False and t.name]
        if layout.showlegend is not False and (len(shown) > 1 or any(shown)):
            self.picture.legend(loc="upper left", bbox_to_anchor=(1.02, top), edgecolor="none")

    def spec(self, name: str):
        """plotly's axis of this name: x, y, x2 …"""
        return self.fig.layout[f"{name[0]}axis{name[1:]}"]

    def subplot(self, *names: str) -> Axes:
        """The axes that these two span; those that match share their range."""
        if names not in self.axes:
            specs = [self.spec(name) for name in names]
            (x0, x1), (y0, y1) = (spec.domain or (0, 1) for spec in specs)
            left, bottom, width, height = self.box
            place = left + x0 * width, bottom + y0 * height, (x1 - x0) * width, (y1 - y0) * height
            roots = [spec.matches or name for spec, name in zip(specs, names, strict=True)]
            sharex, sharey = map(self.shared.get, roots)
            ax = self.axes[names] = self.picture.add_axes(place, sharex=sharex, sharey=sharey)
            self.shared = dict.fromkeys(roots, ax) | self.shared
            for name, spec in zip(names, specs, strict=True):
                ax.set(**{f"{name[0]}scale": "log" if spec.type == "log" else "linear"})
                order = spec.categoryarray or self.spec(spec.matches or name).categoryarray
                if order:  # a panel may lack some: they have their places in it all the same
                    getattr(ax, f"{name[0]}axis").update_units(list(order))
        return self.axes[names]

    def scatter(self, ax: Axes, trace, colour: str, label: str) -> None:
        line, marker, (x, y) = trace.line, trace.marker, points(ax, trace)
        mode = trace.mode or ("lines+markers" if len(x) < 20 else "lines")
        several = isinstance(marker.color, tuple)
        colours = marker.color if several else [marker.color or line.color or colour]
        stroke = dict(color=rgba(line.color or colours[0]), linestyle=DASHES[line.dash])
        stroke |= dict(linewidth=(line.width or 2) * POINT)
        symbols = np.resize(marker.symbol or "circle", len(x))
        if "lines" in mode:
            ax.plot(x, y, label=label, **stroke)
            label = "_"
        if "markers" in mode:
            shades = np.resize([rgba(c, marker.opacity) for c in colours], (len(x), 4))
            sizes = np.resize((np.array(marker.size or 6) * POINT) ** 2, len(x))
            for symbol in dict.fromkeys(symbols):
                at, how = symbols == symbol, dict(marker=SYMBOLS.get(symbol, "o"), label=label)
                ax.scatter(x[at], y[at], sizes[at], shades[at], zorder=3, **how)
        self.errors(ax, trace, x, y, stroke["color"])

    def bar(self, ax: Axes, trace, colour: str, label: str) -> None:
        flat, marker = trace.orientation == "h", trace.marker
        at, length = points(ax, trace)[:: -1 if flat else 1]
        mode, gap = self.fig.layout.barmode or "group", self.fig.layout.bargap
        bars = [t for t in self.fig.data if t.type == "bar" and t.xaxis == trace.xaxis]
        beside = [t is trace for t in bars] if mode == "group" else [True]
        width = (0.8 if gap is None else 1 - gap) / len(beside)
        at = at + (beside.index(True) - (len(beside) - 1) / 2) * width
        below = np.zeros(len(at))
        if mode in ("stack", "relative"):  # what is negative piles up downwards
            for i, up in enumerate(length):
                below[i] = self.piles[ax, at[i], up < 0]
                self.piles[ax, at[i], up < 0] += up
        if marker.color is None or isinstance(marker.color, str):
            colour = rgba(marker.color or colour, trace.opacity)
        elif isinstance(marker.color[0], str):
            colour = [rgba(one, trace.opacity) for one in marker.color]
        else:
            shades = self.shades(ax, marker, marker.cmin, marker.cmax, marker.showscale)
            colour = shades.to_rgba(np.array(marker.color))
        (ax.barh if flat else ax.bar)(at, length, width, below, color=colour, label=label)
        self.errors(ax, trace, at, below + length, "#444444")

    def errors(self, ax: Axes, trace, x: np.ndarray, y: np.ndarray, colour) -> None:
        """Error bars, where a trace has them."""
        bars = {}
        for name in ("x", "y"):
            spec = getattr(trace, f"error_{name}", None)
            if spec is not None and spec.array is not None:
                down = spec.array if spec.arrayminus is None else spec.arrayminus
                bars[f"{name}err"] = np.array([down, spec.array], float)
        if bars:
            ax.errorbar(x, y, **bars, fmt="none", ecolor=colour)

    def histogram(self, ax: Axes, trace, colour: str, label: str) -> None:
        x, bins = np.array(trace.x, float), trace.xbins
        weights = np.full(len(x), 100 / len(x)) if trace.histnorm == "percent" else None
        size = bins.size
        edges = np.arange(bins.start, bins.end + size / 2, size) if size else trace.nbinsx
        colour = rgba(trace.marker.color or colour, trace.opacity)
        ax.hist(x, edges, weights=weights, color=colour, label=label)

    def heatmap(self, ax: Axes, trace, colour: str, label: str) -> None:
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

    def violin(self, ax: Axes, trace, colour: str, label: str) -> None:
        """A box for the middle half of the values, their median, and whiskers to the farthest."""
        ax.yaxis.update_units([trace.name])
        x, line = (
            np.array(trace.x, float),
            dict(color=rgba(trace.line.color or trace.marker.color or colour)),
        )
        ax.boxplot(
            [x[np.isfinite(x)]],
            positions=ax.yaxis.convert_units([trace.name]),
            orientation="horizontal",
            whis=(0, 100),
            manage_ticks=False,
            **{f"{part}props": line for part in ("box", "whisker", "cap", "median")},
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
            form = spec.tickformat.replace("~", "")
            form = ",.10g" if form == "," else form  # 4,100 and not 4,100.0
            si = EngFormatter(sep="")  # 1k, 2M; Python's own formats have no such thing
            axis.set_major_formatter(si if form == "s" else "{x:" + form + "}")
        if spec.tickvals is not None:
            ax.minorticks_off()
            texts = spec.ticktext or [f"{at:g}" for at in spec.tickvals]
            axis.set_ticks(spec.tickvals, [plain(text) for text in texts])
        if False in (spec.showticklabels, spec.visible):
            axis.set_tick_params(length=0, labelbottom=False, labelleft=False)
        axis.set_tick_params(labelrotation=-(spec.tickangle or 0))
        axis.grid(False not in (spec.showgrid, spec.visible))
        axis.set_label_text(plain(spec.title.text))
        if spec.scaleanchor:
            ax.set_aspect("equal")

    def note(self, note) -> None:
        """A text at its place; on a logarithmic axis plotly gives the exponent."""
        place, transforms = [], []
        for at, ref in ((note.x, note.xref or "x"), (note.y, note.yref or "y")):
            # measured by the paper, an axis ("x2") or its length ("x2 domain")
            name, _, domain = ref.partition(" ")
            on_paper = name == "paper"
            ax = next((ax for names, ax in self.axes.items() if name in names), self.paper)
            log = not (on_paper or domain) and self.spec(name).type == "log"
            place.append(10.0**at if log else at)
            transforms.append(ax.transAxes if domain or on_paper else ax.transData)
        text = self.picture.text(*place, plain(note.text), rotation=-(note.textangle or 0))
        text.set(
            transform=blended_transform_factory(*transforms),
            ha=note.xanchor or "center",
            va=(note.yanchor or "center").replace("middle", "center"),
            size=(note.font.size or 14) * POINT,
        )
        if note.bgcolor:
            text.set_bbox({"facecolor": rgba(note.bgcolor), "edgecolor": "none", "pad": 1})

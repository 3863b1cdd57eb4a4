"""The browser in JupyterLab: plain ipywidgets around the template's pages."""

from threading import Thread

import ipywidgets as w
import numpy as np

from sae_lib.browser.clamp_panel import ClampPanel
from sae_lib.browser.context import Context
from sae_lib.browser.model import Model, note
from sae_lib.browser.page import decimal, page_html, percent, style_html
from sae_lib.browser.query import HELP
from sae_lib.browser.rating import ratings_file
from sae_lib.browser.rating_panel import RatingPanel
from sae_lib.browser.table import SORTS, FeatureTable, open_table
from sae_lib.browser.try_text import TryText
from sae_lib.features import BASELINES
from sae_lib.runs import Run
from sae_lib.visible import isolated

SHORT = {"description_width": "50px"}
NEAR = 10  # buttons for the nearest features
LISTED = 200  # at once: more would make the page slow, and nobody reads on
SCORED = (
    "auroc",
    "balanced accuracy",
)  # sorted by these, a line of the list shows them in place of the maximum
DIRECTIONS = {"largest first": True, "smallest first": False}


def widget(run: Run, name: str = "") -> "FeatureBrowser":
    """The browser of one autoencoder's features (the run's recipe by default), or of one of `features.BASELINES`: "neurons", "random", "principal"."""
    rated = "" if name in BASELINES else name
    rate = RatingPanel(
        lambda: {"feature": open_table(run, rated), "neuron": open_table(run, "neurons")},
        ratings_file(run, rated),
    )
    return FeatureBrowser(open_table(run, name), Model(run, name), rate)


class FeatureBrowser(w.VBox):
    """Search, sort, list and the page of the chosen feature. `matches` holds all that the search found, `current` the number shown.

    With a model: the panels that need one, closed at first. What is closed costs nothing: it follows the page once it is opened.
    """

    def __init__(
        self, table: FeatureTable, model: Model | None = None, rate: RatingPanel | None = None
    ):
        self.table, self.current, self.matches = table, -1, np.arange(0)
        self._rng, self._busy = np.random.default_rng(), False
        self.search = w.Text(
            placeholder='import  text:"def main"  density<0.1%  #12',
            description="Search",
            tooltip=HELP,
            style=SHORT,
            layout=w.Layout(width="255px"),
        )
        self.sort = w.Dropdown(
            options=table.sorts,
            value="density",
            description="Sort by",
            style=SHORT,
            layout=w.Layout(width="195px"),
        )
        self.direction = w.Dropdown(options=list(DIRECTIONS), layout=w.Layout(width="112px"))
        self.previous, self.next, self.random = (
            w.Button(description=d, layout=w.Layout(width="80px"))
            for d in ("Previous", "Next", "Random")
        )
        self.count = w.HTML()
        self.list = w.Select(rows=34, layout=w.Layout(width="auto"))
        self.page = w.HTML(layout=w.Layout(max_height="720px", overflow="auto"))
        self.near = [
            w.Button(
                layout=w.Layout(width="auto", height="22px", display="none", margin="1px"),
                style={"font_size": "11px"},
            )
            for _ in range(NEAR)
        ]
        self.near_label = w.HTML(note("Nearest by decoder cosine:"))
        self.list.add_class("sae-browser-list")
        self.search.observe(lambda _: self.refresh(to_first=True), "value")
        for control in (self.sort, self.direction):
            control.observe(lambda _: self.refresh(), "value")
        self.list.observe(self._chosen, "value")
        self.previous.on_click(lambda _: self._step(-1))
        self.next.on_click(lambda _: self._step(1))
        self.random.on_click(lambda _: self._draw())
        for button in self.near:
            button.on_click(lambda b: self.show(b.number))
        bar = w.HBox(
            [self.search, self.sort, self.direction, self.previous, self.next, self.random],
            layout=w.Layout(flex_flow="row wrap"),
        )
        left = w.VBox([self.count, self.list], layout=w.Layout(flex="0 0 350px"))
        nearest = w.HBox(
            [self.near_label, *self.near],
            layout=w.Layout(flex_flow="row wrap", align_items="center"),
        )
        right = w.VBox([self.page, nearest], layout=w.Layout(flex="1 1 420px", min_width="0"))
        body = w.HBox(
            [left, right],
            layout=w.Layout(flex_flow="row wrap", align_items="flex-start", grid_gap="16px"),
        )
        panels = (
            {}
            if model is None
            else {
                "Whole context of an example": Context(table, model),
                "Try your own text": TryText(table, model, self.show),
                "Clamp": ClampPanel(table, model),
            }
        )
        self.panels = w.Accordion(
            list((panels | ({"Rate, blind": rate} if rate else {})).values()),
            titles=[*panels, *(["Rate, blind"] if rate else [])],
        )
        self.panels.observe(lambda _: self._follow(), "selected_index")
        parts = [
            w.HTML(style_html()),
            bar,
            w.HTML(
                f'<details class="sae-browser sae-help"><summary>how to search</summary>{HELP}</details>'
            ),
            body,
        ]
        super().__init__(
            [*parts, self.panels] if self.panels.children else parts,
            layout=w.Layout(margin="0 0 16px"),
        )
        self.refresh()
        Thread(
            target=lambda: table.texts, daemon=True
        ).start()  # the index of the examples' texts, so that the first search in them does not wait

    def refresh(self, to_first: bool = False) -> None:
        """Search and sort again; the feature shown stays while it is among the matches, unless `to_first`."""
        self.matches = self.table.matches(
            self.search.value, self.sort.value, DIRECTIONS[self.direction.value]
        )
        for button in (self.previous, self.next, self.random):
            button.disabled = len(self.matches) == 0
        if len(self.matches) == 0:
            self.current = -1
            self._list(0)
            self._nearest([])
            self.page.value = f'<p class="sae-browser">Nothing matches. {HELP}</p>'
        elif to_first or self.current not in self.matches:
            self.show(int(self.matches[0]))
        else:
            self.show(self.current)

    def show(self, number: int) -> None:
        """Turn to a feature's page; one outside the matches is shown as well."""
        self.current = number
        at = np.flatnonzero(self.matches == self.current)
        self._list(int(at[0]) if len(at) else 0)
        shown = self.table.page(number)
        self._nearest(shown["near"])
        self.page.value = page_html(
            self.table.kind, shown | {"near": []}
        )  # its neighbours are buttons here
        self._follow()

    def _follow(self) -> None:
        """Turn the open panel to the page's feature."""
        if self.panels.selected_index is not None and self.current >= 0:
            panel = self.panels.children[self.panels.selected_index]
            if not isinstance(panel, RatingPanel):
                panel.turn(self.current)

    def _nearest(self, near: list[dict]) -> None:
        self.near_label.layout.display = "" if near else "none"
        for i, button in enumerate(self.near):
            button.layout.display = "" if i < len(near) else "none"
            if i < len(near):
                button.number = near[i]["number"]
                button.description = f"{near[i]['number']}  {isolated(near[i]['token'][:12])}  {near[i]['value']:.2f}"

    def _list(self, position: int) -> None:
        """List the `LISTED` matches around the one at `position`."""
        first = position // LISTED * LISTED
        listed = [int(n) for n in self.matches[first : first + LISTED]]
        total = (
            f"{decimal(len(self.matches))} of " if len(self.matches) < len(self.table) else ""
        ) + f"{decimal(len(self.table))} {self.table.kind}s"
        self.count.value = total + (
            f", {first + 1} to {first + len(listed)} listed"
            if len(listed) < len(self.matches)
            else ""
        )
        self._busy = True
        options = tuple((self._label(n), n) for n in listed)
        if options != self.list.options:
            self.list.options = options
        self.list.value = self.current if self.current in listed else None
        self._busy = False

    def _label(self, number: int) -> str:
        token, density, maximum = self.table.label(number)
        name = isolated(f"{token or 'dead':<14.14}")
        score = (
            self.table.features[SORTS[self.sort.value]].iloc[number]
            if self.sort.value in SCORED
            else maximum
        )
        return f"{number:>5} {name} {percent(density):>9} {decimal(float(score)) if score == score else '':>6}".replace(
            " ", "\xa0"
        )

    def _chosen(self, change: dict) -> None:
        if not self._busy and change["new"] is not None:
            self.show(change["new"])

    def _step(self, by: int) -> None:
        at = np.flatnonzero(self.matches == self.current)
        self.show(int(self.matches[(at[0] + by) % len(self.matches) if len(at) else 0]))

    def _draw(self) -> None:
        alive = np.intersect1d(self.matches, self.table.alive(1))
        pool = alive if len(alive) else self.matches
        others = pool[pool != self.current]
        self.show(int(self._rng.choice(others if len(others) else pool)))

"""The panel that shows one page after the other, without its kind, and takes a rating for each."""

from collections.abc import Callable
from pathlib import Path

import ipywidgets as w
from IPython.display import display

from suite.browser import rating
from suite.browser.model import note, said_in
from suite.browser.page import page_html
from suite.browser.table import FeatureTable


class RatingPanel(w.VBox):
    """Rate `n` features and `n` neurons, mixed by a seed. Begun again with the same name and seed it goes on where it stopped."""

    def __init__(self, open_tables: Callable[[], dict[str, FeatureTable]], path: Path):
        self.open_tables, self.path, self.tables = open_tables, path, {}
        self.items: list[tuple[str, int]] = []
        self.at = 0
        field = w.Layout(width="200px")
        self.rater = w.Text(description="Your name", layout=field)
        self.n = w.BoundedIntText(
            20,
            min=1,
            max=500,
            description="Of each kind",
            style={"description_width": "initial"},
            layout=field,
        )
        self.seed = w.BoundedIntText(0, min=0, max=2**31 - 1, description="Seed", layout=field)
        self.begin = w.Button(
            description="Begin", button_style="primary", layout=w.Layout(width="90px")
        )
        self.note, self.page, self.figure = (
            w.HTML(),
            w.HTML(layout=w.Layout(max_height="560px", overflow="auto")),
            w.Output(),
        )
        self.buttons = [
            w.Button(description=f"{r}  {text}", layout=w.Layout(width="132px"))
            for r, text in rating.SCALE.items()
        ]
        self.back = w.Button(description="Back", layout=w.Layout(width="60px"))
        for value, button in zip(rating.SCALE, self.buttons, strict=True):
            button.on_click(lambda _, value=value: self.rate(value))
        self.begin.on_click(lambda _: self.start())
        self.back.on_click(lambda _: self._show(self.at - 1))
        what = "Features and neurons, mixed and without a sign of which is which. How clearly does what you see stand for one thing?"
        bar = w.HBox(
            [self.rater, self.n, self.seed, self.begin], layout=w.Layout(flex_flow="row wrap")
        )
        self.controls = w.HBox(
            [*self.buttons, self.back], layout=w.Layout(flex_flow="row wrap", display="none")
        )
        super().__init__(
            [w.HTML(note(what)), bar, self.note, self.controls, self.page, self.figure]
        )

    def start(self) -> None:
        """Draw, and go to the first that this rater has not rated with this seed."""
        with said_in(self.note):
            rater = rating.rater_name(self.rater.value)
            self.tables = self.tables or self.open_tables()
            self.items = rating.draw_blind(self.tables, self.n.value, self.seed.value)
            known = rating.load_ratings(self.path)
            known = known[(known["rater"] == rater) & (known["seed"] == self.seed.value)]
            rated = set(zip(known["kind"], known["unit"], strict=True))
            self.items.sort(
                key=lambda item: item not in rated
            )  # those rated first, else in the order drawn
            self.session = (rater, self.seed.value)  # what is typed from now on is for the next one
            self.figure.clear_output()
            self._show(sum(item in rated for item in self.items))

    def rate(self, value: int) -> None:
        """Save a rating of the page shown, and show the next."""
        kind, unit = self.items[self.at]
        with said_in(self.note):
            rating.save_rating(self.path, *self.session, kind, unit, value)
            self._show(self.at + 1)

    def _show(self, at: int) -> None:
        self.at = at
        self.back.disabled = at == 0
        done = at >= len(self.items)
        self.controls.layout.display = "none" if done else ""
        if done:
            self.note.value = note(
                f"All {len(self.items)} are rated."
                if self.items
                else "Nothing fires often enough to be rated."
            )
            self.page.value = ""
            if self.items:
                with self.figure:
                    display(rating.figure(rating.load_ratings(self.path)))
            return
        kind, unit = self.items[at]
        self.note.value = note(f"<b>{at + 1}</b> of {len(self.items)}")
        self.page.value = page_html("unit", rating.blinded(self.tables[kind].page(unit), at + 1))

"""Look at features: one page for JupyterLab and for `browser.html`, and HTML that needs no script.

The page is the JavaScript module in `app/`. `mount(element, source)` draws it in a shadow root of
the element. A source has two asynchronous calls and an address:

    block(name)    the bytes that Python packed under this name (`blocks.Blocks`): "index",
                   "vocabulary", "feature-3" or "neuron-3" (pages of 64 units), "rating" (the
                   numbers of the units to rate), "rows-3" (rows of held-out text), "logits-3"
                   (histograms of 64 features' effects on the logits)
    ask(question, arguments)    plain data, or an error of one line for the reader (`kernel.Model`)
        "activations" {text, feature}: the token ids of a text, the feature on each token, each
                   token's strongest features, and the text's strongest on every token; the Worker
                   sends what is known of it ahead, to `ask`'s third argument
        "clamp" {text, clamps, keep_error, new_tokens, temperature, seed}: the next tokens, KL
                   beside that of random directions, and two continuations
        "context" {row, feature, ablate}: a whole row of text, the features on it, and the change of
                   the loss
        "why" {ids, feature, position}: a feature's pre-activation there, what token and position
                   add directly, and what each head brings from each token
        "graph" {ids, tokens}: what adds to the difference of two tokens' logits after a text
    "texts" {wanted}: the features with this text in an example
        "notes" {}, "note" {notes}: the reader's names, stars and lists
        "ratings" {}: every blind rating so far
        "rate" {rater, seed, kind, unit, rating}: one more
    address        all that is shown, as "feature=12&view=try": location.hash, or a variable

There are two sources. `KernelSource` (the notebook, through anywidget's messages) passes both calls
to the kernel, where the model itself answers; so the output stays small, and any model of a run can
be asked. `FileSource` (`browser.html`) has the blocks in the page. A Worker (app/worker.js) answers
from the int8 model among them (`page_model`) and searches the texts of all examples; names, stars,
lists and ratings are in localStorage.
"""

from suite.browser.kernel import FeatureBrowser, own_text, widget
from suite.browser.page import static
from suite.close_reading import gallery

__all__ = [
    "FeatureBrowser",
    "gallery",
    "own_text",
    "static",
    "widget",
]

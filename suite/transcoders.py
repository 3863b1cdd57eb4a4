"""A transcoder in place of the MLP: the study, and the attribution graph that notebook 08 draws."""

from pathlib import Path

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Integer

from sae_lib.features import evaluation
from sae_lib.features.attribution import Block
from sae_lib.features.logit_graph import EDGES, LogitGraph, graph_study, logit_graph, most_probable
from sae_lib.features.statistics import interval
from sae_lib.figures import PALETTE
from sae_lib.files import digest
from sae_lib.formats import signed
from sae_lib.sae.recipes import RECIPES, of_recipe, read_recipes
from sae_lib.sae.transcoder import INPUT, MLPPair, Transcoder
from sae_lib.settings import SAESettings
from suite import markup, stages, study_figures, sweep
from suite.charts import AGAINST
from suite.runs import Run

OWN = read_recipes(Path(__file__).with_suffix(".yaml"), RECIPES)
TIMES = 2  # the run's own number of activations
WINDOWS = 100  # a feature is dead when it is silent for such a share of them
SMALL = 8  # notebook 08 trains on so much less than the run where there was no study
PROMPTS = 200  # whose graphs are checked
SHOWN = 8  # tokens and features of a figure
MEASURES = (*study_figures.MEASURES, "recovered_zero_interval", "recovered_mean_interval")
MEASURES += ("ce_clean", "ce_spliced", "ce_zero", "ce_mean")


def study(run: Run) -> dict:
    """Make `results/study_transcoder.json`: a transcoder without and with a skip connection over
    seeds, spliced in for the MLP, and checks of their graphs. What is measured is kept on the way.
    """
    run.path("language_model")
    points = [_point(run, name, seed) for seed in sweep.SEEDS for name in OWN]
    about = {"d_sae": _width(run), "prompts": PROMPTS, "edges": EDGES}
    about |= {"k": {name: recipe.k for name, recipe in OWN.items()}}
    about |= {"activations": TIMES * run.settings.sae.activations}
    run.save_results("study_transcoder", {"points": points, "about": sweep.about(run) | about})
    return run.load_results("study_transcoder")


def _settings(run: Run, name: str, seed: int, activations: int) -> SAESettings:
    layer = stages.hook(run).layer
    values = {"seed": seed, "activations": activations, "hook_name": f"blocks.{layer}.{INPUT}"}
    values |= {"d_sae": _width(run), "dead_window": max(1, activations // WINDOWS)}
    return sweep.changed(of_recipe(run.settings.sae, name), compare=(), widths=(), **values)


def _width(run: Run) -> int:
    return max(1, run.settings.sae.d_sae // 2)


def _folder(run: Run, settings: SAESettings) -> Path:
    return run.folder / "transcoders" / sweep.point_name(settings)


def trained(run: Run, settings: SAESettings) -> Transcoder:
    """A transcoder of these settings, trained where that has not been done."""
    hook = stages.hook(run)
    with sweep.also_known(OWN):
        stages.make_other_autoencoder(run, MLPPair(hook), settings, _folder(run, settings))
        return Transcoder.load(_folder(run, settings), hook.device)


def at_hand(run: Run) -> Transcoder:
    """The study's first transcoder where it has been trained, else a small one: seconds."""
    activations = run.settings.sae.activations
    with sweep.also_known(OWN):
        settings = _settings(run, "transcoder", sweep.SEEDS[0], TIMES * activations)
        if not _folder(run, settings).exists():
            settings = sweep.changed(settings, activations=max(1024, activations // SMALL))
        return trained(run, settings)


def _point(run: Run, name: str, seed: int) -> dict:
    s, hook = run.settings, stages.hook(run)
    settings = _settings(run, name, seed, TIMES * s.sae.activations)
    with sweep.also_known(OWN):
        made_from = stages.fingerprint_of(run, settings) | stages.section(run, "evaluation")
        where = f"transcoders/{digest(made_from | {'prompts': PROMPTS})[:12]}"
        if (found := run.saved_results(where, made_from)) is None:
            transcoder, rows = trained(run, settings), stages.heldout_parts(run)[1]
            found = evaluation.evaluate(MLPPair(hook), {"": transcoder}, rows, s.evaluation)[""]
            summary = stages.read_summary(_folder(run, settings))
            graphs = graph_study(Block(hook, transcoder), rows, PROMPTS, seed)
            found = {measure: found[measure] for measure in MEASURES}
            found |= {"seconds": summary["seconds"], "graphs": graph_summary(graphs, seed)}
            run.save_results(where, {"contender": name, "seed": seed} | found, made_from)
    return run.saved_results(where, made_from)


def graph_summary(graphs, seed: int) -> dict:
    """Of a `graph_study`: the largest error of the sum; the medians, with intervals over prompts,
    of the absolute change of the difference without the largest edges and without random ones; how
    their prediction with all held correlates with it; and mean shares of the edges.
    """
    size = {name: graphs[name].abs().to_numpy() for name in ("top", "random")}
    medians = {name: np.median(values) for name, values in size.items()}
    intervals = {name: interval((values,), np.median, seed=seed) for name, values in size.items()}
    shares = {name: graphs[name].mean() for name in ("features", "tokens", "unexplained")}
    correlation = graphs["top"].corr(graphs["top_predicted"], method="spearman")
    found = {"error": graphs["error"].max(), "spearman": correlation, "shares": shares}
    found |= {"larger": (size["top"] > size["random"]).mean(), "n": len(graphs)}
    return found | {"change": medians, "interval": intervals}


def prompt_graph(
    run: Run, transcoder: Transcoder, ids: Integer[np.ndarray, " position"]
) -> tuple[LogitGraph, tuple[int, int]]:
    """(graph of a prompt for the two tokens that are likeliest to follow, these tokens)."""
    block = Block(stages.hook(run), transcoder)
    tokens = most_probable(block, ids)
    return logit_graph(block, ids, *tokens), tokens


def figure(graph: LogitGraph, names: list[str], tokens: tuple[str, str]) -> go.Figure:
    """The largest edges of a graph, from the prompt's tokens (left, named `names`) through features
    to the logits' difference (right); as wide as what they add to it.
    """
    paths, through, direct = (
        part.numpy() for part in (graph.paths, graph.through_features, graph.direct)
    )
    sources = np.sort(np.argsort(-(np.abs(paths).sum(0) + np.abs(direct)))[:SHOWN])
    features = np.argsort(-np.abs(through))[:SHOWN]
    at = {("token", s): (0, -i) for i, s in enumerate(sources)}
    at |= {("feature", f): (1, -i) for i, f in enumerate(features)}
    end = (2, -(max(len(sources), len(features)) - 1) / 2)
    edges = [(at["token", s], end, direct[s]) for s in sources]
    edges += [(at["feature", f], end, through[f]) for f in features]
    edges += [(at["token", s], at["feature", f], paths[f, s]) for s in sources for f in features]
    largest, fig = max(abs(value) for *_, value in edges), go.Figure()
    for (x0, y0), (x1, y1), value in edges:
        if abs(value) > 0.02 * largest:
            colour, width = AGAINST if value < 0 else PALETTE[0], 0.5 + 7 * abs(value) / largest
            line = {"color": colour, "width": width}
            look = {"mode": "lines", "line": line, "opacity": 0.5, "hoverinfo": "skip"}
            fig.add_scatter(x=[x0, x1], y=[y0, y1], showlegend=False, **look)
    labels = {at["token", s]: names[s] for s in sources}
    labels |= {at["feature", f]: f"feature {graph.features[f]}" for f in features}
    labels[end] = f"{tokens[0]} over {tokens[1]}: {signed(graph.total)}"
    for (x, y), label in labels.items():
        fig.add_annotation(x=x, y=y, text=markup.label(label, 40), showarrow=False, bgcolor="white")
    for x, column in enumerate(("tokens", "features", "difference of logits")):
        fig.add_annotation(x=x, y=1, yref="paper", yanchor="bottom", text=column, showarrow=False)
    fig.update_xaxes(visible=False, range=[-0.4, 2.6])
    fig.update_yaxes(visible=False, range=[-max(len(sources), len(features)) + 0.4, 0.6])
    named = " over ".join(f"“{markup.label(token, 20)}”" for token in tokens)
    title = f"What favours {named}? Blue adds, grey takes away"
    return fig.update_layout(title=title, margin_b=20)

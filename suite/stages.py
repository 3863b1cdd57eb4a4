"""Everything that a run can make: one table, and the only place that knows what is made from
what.
"""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file, save_file

from sae_lib.checkpoints import CheckpointFolder
from sae_lib.device import device_of, memory_of
from sae_lib.errors import SettingsError
from sae_lib.features import baselines, clamping, evaluation, feature_table, firing
from sae_lib.features import circuits as features_circuits
from sae_lib.formats import gib
from sae_lib.interpretability import clusters, scores, scoring
from sae_lib.model import language_model
from sae_lib.model.activations import HookPoint, find_hook, leave_out
from sae_lib.model.original import one_position_each
from sae_lib.sae import training
from sae_lib.sae.autoencoder import SparseAutoencoder
from sae_lib.sae.dictionaries import Dictionary, Directions, Neurons
from sae_lib.sae.early_stopping import ACTIVATIONS
from sae_lib.sae.engine import distributed
from sae_lib.sae.recipes import resolve, training_fingerprint, variant, variants
from sae_lib.settings import SAESettings, Settings, load
from sae_lib.text.corpus import documents
from sae_lib.text.dialogues import with_dialogues
from sae_lib.text.display import Vocabulary
from sae_lib.text.tokenizer import bos_id, load_tokenizer, special_ids
from sae_lib.text.tokens import open_tokens, write_tokens
from suite import circuits, prompts, runs, text_summary
from suite.runs import Run, Stage, writing

BASELINES = feature_table.BASELINES
DIRECTIONS = ("directions", "centre", "threshold")  # in their file
SMALL = 2**17  # weights: in smaller products several threads wait for each other longest
CIRCUIT_TOKENS = 98_304  # held-out tokens of notebook 08
CHOOSING = 0.25  # share of the held-out tokens on which studies choose settings
Made = dict[str, Any]  # the settings that an artefact depends on


def open_run(
    profile: str = "laptop",
    run_dir: str | Path = "",
    overrides: list[str] | tuple[str, ...] = (),
    reading: bool = False,
) -> Run:
    """The run of a profile with overrides. Without `run_dir`: `runs/<profile>`, with overrides
    `runs/<profile>-<hash of them>`.

    Nothing is written before something is made. `reading`: the run has to be there, and nothing is
    trained for it.
    """
    settings = load(profile, overrides)
    own = profile if settings == load(profile) else f"{profile}-{runs.settings_hash(settings)}"
    run = Run(settings, Path(run_dir or f"runs/{own}"), STAGES, reading=reading)
    run.check_folder()
    check_settings(run)
    if run.settings.lm.d_mlp * max(run.settings.lm.d_model, run.settings.sae.d_sae) < SMALL:
        torch.set_num_threads(1)
    return run


def check_settings(run: Run) -> None:
    """What settings alone cannot know: device, recipes and hook names, said before anything is
    made or written.
    """
    device = device_of(run.settings.device)
    for prefix, part in (("", run.settings), ("last_mlp.", run.last_mlp().settings)):
        try:
            variants(part)
        except SettingsError as error:
            raise SettingsError(f"{prefix}{error}") from None
        if part.lm.source == "train":
            find_hook(part.sae.hook_name, part.lm.architecture, part.lm.n_layer)
            check_memory(part, prefix, device)


def check_memory(s: Settings, prefix: str, device: torch.device) -> None:
    """`SettingsError` where a model or the feature table alone exceeds the memory of the device:
    the system would kill the process. Weights, gradients and Adam's moments take 16 bytes each, an
    example 12.
    """
    d_in = s.lm.d_mlp if "mlp.hook_post" in s.sae.hook_name else s.lm.d_model
    width = max(s.sae.d_sae, *s.sae.widths, 0)
    layer = s.lm.d_model * (4 * s.lm.d_model + 2 * s.lm.d_mlp)
    examples = width * (s.features.top_k + 10 * s.features.samples)
    needed = {
        f"{prefix}sae.d_sae, sae.widths or lm.d_mlp": 16 * 2 * width * d_in,
        f"{prefix}lm.d_model, lm.d_mlp or lm.n_layer": 16 * s.lm.n_layer * layer,
        f"{prefix}features.top_k, features.samples or sae.d_sae": 12 * examples,
    }
    have = memory_of(device)
    for names, size in needed.items():
        if size > have:
            raise SettingsError(
                f"{names}: {gib(size)} of memory are needed, and {device} has {gib(have)}; "
                "choose less"
            )


# --- text ---


def section(run: Run, name: str, without: tuple[str, ...] = ()) -> Made:
    """A section of the settings that something is made from."""
    return {name: getattr(run.settings, name).model_dump(mode="json", exclude=set(without))}


def tokens_fingerprint(run: Run, name: str = "") -> Made:
    return section(run, "corpus") | section(run, "tokenizer") | {"seed": run.settings.seed}


def make_tokens(run: Run, name: str, out: Path) -> None:
    s = run.settings
    stream = documents(s.corpus, s.seed)
    if s.corpus.dialogues:
        stream = with_dialogues(stream, s.corpus, load_tokenizer(s.tokenizer.source), s.seed)
    write_tokens(stream, s.corpus, s.tokenizer, out)
    text_summary.write(s.corpus, open_tokens(out))


# --- the language model ---


def model_fingerprint(run: Run, name: str = "") -> Made:
    lm = run.settings.lm
    without = ("checkpoint_gb",) if lm.revision else ("checkpoint_gb", "revision")
    return tokens_fingerprint(run) | section(run, "lm", without)


def make_language_model(
    run: Run, name: str, out: Path, store: CheckpointFolder, seed: int | None = None
) -> None:
    """`seed`: where it is not the run's own."""
    s, tokens = run.settings, run.get("tokens")
    seed = s.seed if seed is None else seed
    model, summary = language_model.train(s.lm, tokens, seed, device_of(s.device), store)
    model.cpu().save_pretrained(out)
    tokens.tokenizer.save_pretrained(out)
    write_summary(out, summary)


def model_source(run: Run) -> str:
    """The folder of the run's language model, trained first where it is not there; or the folder
    or hub name of a ready one.
    """
    lm = run.settings.lm
    return str(run.path("language_model")) if lm.source == "train" else lm.source


def load_language_model(run: Run, name: str, folder: Path | None) -> Any:
    s = run.settings
    device = device_of(s.device)
    return language_model.load(model_source(run), s.lm.context, device, s.lm.revision)


def hook(run: Run) -> HookPoint:
    """Where the run's autoencoders read the language model; both are loaded once."""
    return run.get("hook")


def hook_of(run: Run, model: Any) -> HookPoint:
    """The run's hook on a model, with BOS before every row where a ready model expects it, and
    what is left out of everything, where the settings leave something out.
    """
    s, tokens = run.settings, run.get("tokens")
    bos = None if s.lm.source == "train" else bos_id(tokens.tokenizer)
    made = HookPoint(model, s.sae.hook_name, bos)
    if s.sae.outlier_norm:
        special, rows = special_ids(tokens.tokenizer), tokens.rows("train", s.lm.context)
        leave_out(made, rows, special, s.sae.outlier_norm)
    return made


def bridge(run: Run) -> Any:
    """The language model as a `TransformerBridge` of TransformerLens for exploring: with every
    hook, on its own copy of the weights.
    """
    from transformer_lens.model_bridge import TransformerBridge  # seconds

    source, device = model_source(run), device_of(run.settings.device)
    return TransformerBridge.boot_transformers(
        source,
        device=str(device),
        hf_model=language_model.open_model(source, device, run.settings.lm.revision),
        tokenizer=run.get("tokens").tokenizer,
    )


def prompts_fingerprint(run: Run, name: str = "") -> Made:
    hook_name = {"hook_name": run.settings.sae.hook_name}
    return model_fingerprint(run) | section(run, "prompts") | hook_name


def make_prompts(run: Run, name: str, out: Path) -> None:
    s = run.settings
    prompts.write_prompt_corpus(hook(run), run.get("tokens").tokenizer, s.prompts, s.seed, out)


# --- autoencoders ---


def sae_fingerprint(run: Run, name: str = "") -> Made:
    return fingerprint_of(run, variant(run.settings, name or run.settings.sae.recipe))


def fingerprint_of(run: Run, sae: SAESettings) -> Made:
    """What an autoencoder of these settings depends on."""
    return model_fingerprint(run) | {"sae": training_fingerprint(sae)}


def make_autoencoder(run: Run, name: str, out: Path, store: CheckpointFolder) -> None:
    """Train one of `recipes.variants(settings)`."""
    train(run, hook(run), variant(run.settings, name), store, out)


def train(
    run: Run,
    hook: HookPoint,
    sae: SAESettings,
    store: CheckpointFolder,
    out: Path,
    model_name: str = "",
) -> None:
    """Train an autoencoder and write it, with the summary of its training, into `out`."""
    trained, summary = fit(run, hook, sae, store)
    if distributed.rank_and_world_size()[0] == 0:
        s = run.settings
        metadata = {
            "model_name": model_name or s.lm.source,
            "context_size": s.lm.context,
            "dataset_path": s.corpus.source,
            "prepend_bos": hook.bos is not None,
            "hook_name": sae.hook_name,
        }
        if commit := getattr(hook.model.config, "_commit_hash", None):
            metadata["model_commit"] = commit  # which of the hub's it was
        trained.save(out, metadata)
        write_summary(out, summary)


def read_summary(folder: Path) -> dict:
    """What `write_summary` wrote beside an autoencoder."""
    return json.loads((folder / "training.json").read_text())


def write_summary(out: Path, summary: dict) -> None:
    (out / "training.json").write_text(json.dumps(summary, indent=1))


def fit(
    run: Run, hook: HookPoint, sae: SAESettings, store: CheckpointFolder
) -> tuple[SparseAutoencoder, dict]:
    """Train on the run's training tokens.

    Adam's moments of silent features decay into denormals, which are an order of magnitude slower:
    they count as zero here.
    """
    tokens, context = run.get("tokens"), run.settings.lm.context
    heldout = heldout_parts(run)[0][: ACTIVATIONS // context] if resolve(sae).patience else None
    source, rows = hook, tokens.rows("train", context)
    seed = run.settings.seed if sae.seed is None else sae.seed
    if resolve(sae).positions == "one":
        source, rows = one_position_each(hook, rows, sae.activations, seed)
    torch.set_flush_denormal(True)
    try:
        return training.fit(source, rows, sae, run.settings.seed, store, heldout)
    finally:
        torch.set_flush_denormal(False)


def make_other_autoencoder(
    run: Run, hook: HookPoint, sae: SAESettings, folder: Path, model_name: str = ""
) -> None:
    """Train an autoencoder of other settings than the run's own, or on another model, which
    `model_name` then names, into `folder`, where that has not been done.
    """
    made_from = fingerprint_of(run, sae) | ({"model": model_name} if model_name else {})
    with run.making(folder, made_from) as missing:
        if missing:
            with runs.trains(sae.recipe, folder, made_from) as store:
                with writing(folder, made_from) as out:
                    train(run, hook, sae, store, out, model_name)


def load_autoencoder(run: Run, name: str, folder: Path) -> SparseAutoencoder:
    return SparseAutoencoder.load(folder, device_of(run.settings.device))


# --- what is measured on them ---


def heldout_rows(run: Run, n_tokens: int):
    """At most `n_tokens` held-out tokens as rows [row, position], spread evenly over the
    held-out documents.
    """
    rows = run.get("tokens").rows("heldout", run.settings.lm.context)
    return firing.spread_rows(rows, n_tokens)


def heldout_documents(run: Run) -> firing.Rows:
    """Of each token of the held-out rows the number of its document [row, position]."""
    tokens = run.get("tokens")
    rows = tokens.rows("heldout", run.settings.lm.context)
    lengths = tokens.table["heldout"]["tokens"]
    return np.repeat(np.arange(len(lengths)), lengths)[: rows.size].reshape(rows.shape)


def heldout_parts(run: Run) -> tuple[firing.Rows, firing.Rows]:
    """(rows to choose settings on, rows to report them on): the first `CHOOSING` of the held-out
    documents, at least one, and the others. Rows with documents of both parts are in neither.
    """
    rows = run.get("tokens").rows("heldout", run.settings.lm.context)
    documents = heldout_documents(run)
    first = max(1, documents[int(CHOOSING * len(rows)), 0])
    return rows[documents[:, -1] < first], rows[documents[:, 0] >= first]


def evaluation_fingerprint(run: Run, name: str = "") -> Made:
    made = {name: fingerprint_of(run, sae) for name, sae in variants(run.settings).items()}
    return made | section(run, "evaluation")


def measure_evaluation(run: Run, name: str = "") -> dict[str, dict]:
    """Every autoencoder of the run and the raw neurons."""
    names = (*variants(run.settings), "neurons")
    dictionaries = {name: run.get("dictionary", name) for name in names}
    s, tokens = run.settings, run.get("tokens")
    rows, documents = tokens.rows("heldout", s.lm.context), heldout_documents(run)
    main, train_rows = s.sae.recipe, tokens.rows("train", s.lm.context)
    beside = (main, partial(baselines.at_equal_l0, hook(run), train_rows))
    beside = None if run.parent else beside
    measured = evaluation.evaluate(hook(run), dictionaries, rows, s.evaluation, documents, beside)
    if beside:
        chosen = firing.spread_rows(rows, s.evaluation.loss_tokens)
        measured[main]["ngrams"] = baselines.ngram_losses(train_rows, chosen)
    return measured


def features_fingerprint(run: Run, name: str = "") -> Made:
    if name == "neurons":
        upstream = model_fingerprint(run) | {"hook_name": run.settings.sae.hook_name}
    else:
        upstream = sae_fingerprint(run, "" if name in BASELINES else name)
    return upstream | section(run, "evaluation") | section(run, "features")


def make_features(run: Run, name: str, out: Path) -> None:
    """`features.parquet` and `examples.parquet` of an autoencoder, or of one of `BASELINES`."""
    s, hooked = run.settings, hook(run)
    rows = heldout_rows(run, s.evaluation.tokens)
    if name in ("random", "principal"):
        density = run.get("features")[0]["density"].to_numpy()
        dictionary = baselines.directions_like(name, density, hooked, rows, s.seed)
        tensors = (dictionary.W_dec, dictionary.centre, dictionary.threshold)
        stored = [tensor.cpu().contiguous() for tensor in tensors]
        save_file(dict(zip(DIRECTIONS, stored, strict=True)), out / "directions.safetensors")
    else:
        dictionary = run.get("dictionary", name)
    tokenizer = run.get("tokens").tokenizer
    made = feature_table.build(hooked, dictionary, rows, tokenizer, s.features, s.seed)
    feature_table.write_features(out, *made)


def load_dictionary(run: Run, name: str, folder: Path | None) -> Dictionary:
    """What a feature table of that name is about."""
    device = device_of(run.settings.device)
    if name == "neurons":
        return Neurons(run.get("autoencoder").d_in, device)
    if name in BASELINES:
        stored = load_file(run.path("features", name) / "directions.safetensors")
        return Directions(*(stored[name].to(device) for name in DIRECTIONS))
    return run.get("autoencoder", name)


# --- what features mean ---


def explanations_file(run: Run, name: str = "") -> Path:
    """Where the explanations of an autoencoder's features lie, a row per feature, null and
    neuron.
    """
    folder = f"explanations-{name or run.settings.sae.recipe}"
    return run.folder / "interpretability" / folder / "explanations.parquet"


def split_heldout(run: Run) -> scoring.Halves:
    """The held-out text in a half to learn rules from and a half to score them on."""
    s = run.settings
    return scoring.split(run.get("tokens"), s.lm.context, s.interpretability, s.seed)


def scores_fingerprint(run: Run, name: str = "") -> Made:
    return sae_fingerprint(run, name) | section(run, "interpretability", ("clusters",))


def make_scores(run: Run, name: str, out: Path) -> None:
    s, text = run.settings, split_heldout(run)
    sae, wanted = run.get("autoencoder", name), s.interpretability.untrained
    untrained = (lambda: untrained_autoencoder(run, name)) if wanted else None
    units = scoring.every_kind(hook(run), sae, text, s.interpretability, s.seed, untrained)
    table, counts = scoring.score_table(units, text, s.interpretability)
    table.to_parquet(out / "scores.parquet", compression="zstd")
    (out / "counts.json").write_text(json.dumps(counts, indent=1))


def summarise_scores(run: Run, name: str = "") -> dict:
    from suite import rule_figures  # plotly takes a while to import

    table, folder = run.get("scores", name), run.folder_of("scores", name)
    where = run.results_name("interpretability", name)
    run.figure(rule_figures.against_neurons(table), where, 1000, 450)
    run.figure(rule_figures.by_kind(table), f"{where}_kinds", 1000, 620)
    counts = json.loads((folder / "counts.json").read_text())
    return counts | scores.summary(table, run.settings.seed)


def untrained_fingerprint(run: Run, name: str = "") -> Made:
    """That of the autoencoder that it is the null for: as many activations, the same recipe."""
    return sae_fingerprint(run, name) | {"language_model": "untrained"}


def untrained_hook(run: Run) -> HookPoint:
    s, tokenizer = run.settings, run.get("tokens").tokenizer
    model = language_model.untrained(s.lm, tokenizer, s.seed, device_of(s.device))
    return hook_of(run, model)


def make_untrained(run: Run, name: str, out: Path, store: CheckpointFolder) -> None:
    train(run, untrained_hook(run), variant(run.settings, name), store, out, "untrained")


def untrained_autoencoder(run: Run, name: str = "") -> tuple[HookPoint, SparseAutoencoder]:
    """(hook of the untrained model, autoencoder trained there): the null for everything said of
    features.
    """
    return untrained_hook(run), run.get("untrained", name)


def clusters_fingerprint(run: Run, name: str = "") -> Made:
    return sae_fingerprint(run, name) | section(run, "interpretability")


def make_clusters(run: Run, name: str, out: Path) -> None:
    """`clusters.parquet` (feature, cluster, name, x, y) of the features that have a rule."""
    s, of_features = run.settings, feature_scores(run, name)
    rows = heldout_rows(run, s.interpretability.tokens)
    sae, n_clusters = run.get("autoencoder", name), s.interpretability.clusters
    table = clusters.cluster_table(of_features, sae, hook(run), rows, n_clusters, s.seed)
    table.to_parquet(out / "clusters.parquet", compression="zstd")


def feature_scores(run: Run, name: str = "") -> pd.DataFrame:
    return run.get("scores", name).query("kind == 'feature'")


def summarise_clusters(run: Run, name: str = "") -> dict:
    from suite import rule_figures

    table = run.get("clusters", name)
    figure = rule_figures.cluster_map(table, clusters.UNNAMED)
    run.figure(figure, run.results_name("clusters", name), 1000, 800)
    values = feature_scores(run, name).set_index("unit")["values"].loc[table["feature"]]
    return clusters.summary(table, [list(v) for v in values], run.settings.seed)


def circuits_fingerprint(run: Run, name: str = "") -> Made:
    made_from = clusters_fingerprint(run, name) | section(run, "evaluation")
    return made_from | {"measured": ["ablated", "clamped"]}


def make_circuits(run: Run, name: str, out: Path) -> None:
    """A parquet file for each table of `features.circuits.study`; the cards have their rules."""
    rows = heldout_rows(run, min(run.settings.evaluation.tokens, CIRCUIT_TOKENS))
    sae = run.get("autoencoder", name)
    tables = features_circuits.study(hook(run), sae, rows, run.settings.seed)
    rules = feature_scores(run, name).set_index("unit")[["rule", "information"]]
    tables["cards"] = circuits.ranked(tables["cards"].join(rules, on="feature"))
    for table, found in tables.items():
        found.to_parquet(out / f"{table}.parquet", compression="zstd")


def load_circuits(run: Run, name: str, folder: Path) -> dict[str, pd.DataFrame]:
    return {path.stem: pd.read_parquet(path) for path in sorted(folder.glob("*.parquet"))}


def summarise_circuits(run: Run, name: str = "") -> dict:
    vocabulary = Vocabulary(run.get("tokens").tokenizer)
    return circuits.summary(run.get("circuits", name), vocabulary, run.settings.seed)


def clamp_context(run: Run) -> clamping.ClampContext:
    """Everything that clamping needs, opened."""
    s, tokenizer = run.settings, run.get("tokens").tokenizer
    table, hooked = run.get("features")[0], hook(run)
    rows = heldout_rows(run, s.clamping.rows * s.lm.context)
    positions = clamping.HeldoutPositions(hooked, rows)
    sae, vocabulary = run.get("autoencoder"), Vocabulary(tokenizer)
    return clamping.ClampContext(hooked, sae, tokenizer, vocabulary, table, positions)


# --- the table ---


def _autoencoder(run: Run, name: str) -> list[tuple[str, str]]:
    """The autoencoder of that name, or the run's own where a baseline is meant."""
    return [("autoencoder", "" if name in BASELINES else name)]


def table_of(file: str) -> Callable[[Run, str, Path], pd.DataFrame]:
    """Loads the one table of an artefact."""
    return lambda run, _, folder: pd.read_parquet(folder / f"{file}.parquet")


def _every_autoencoder(run: Run, name: str) -> list[tuple[str, str]]:
    return [("autoencoder", other) for other in variants(run.settings)]


STAGES = {
    "tokens": Stage(
        "tokens",
        fingerprint=tokens_fingerprint,
        make=make_tokens,
        load=lambda run, _, folder: open_tokens(folder),
        keep=True,
    ),
    "language_model": Stage(
        "language_model",
        inputs=("tokens",),
        fingerprint=model_fingerprint,
        make=make_language_model,
        load=load_language_model,
        needed=lambda run: run.settings.lm.source == "train",
        keep=True,
        trains=True,
    ),
    "prompts": Stage(
        "prompts",
        inputs=("tokens", "language_model"),
        fingerprint=prompts_fingerprint,
        make=make_prompts,
        load=lambda run, _, folder: prompts.load_prompt_corpus(folder),
    ),
    "autoencoder": Stage(
        "saes/{name}",
        inputs=("tokens", "language_model"),
        fingerprint=sae_fingerprint,
        make=make_autoencoder,
        load=load_autoencoder,
        keep=True,
        trains=True,
        together=True,
    ),
    "evaluation": Stage(
        inputs=_every_autoencoder,
        fingerprint=evaluation_fingerprint,
        measure=measure_evaluation,
        results="evaluation",
    ),
    "features": Stage(
        "features/{name}",
        inputs=_autoencoder,
        fingerprint=features_fingerprint,
        make=make_features,
        load=lambda run, _, folder: feature_table.load_features(folder),
        cheap=True,
    ),
    "hook": Stage(
        load=lambda run, name, folder: hook_of(run, run.get("language_model")), keep=True
    ),
    "dictionary": Stage(load=load_dictionary, keep=True),
    "scores": Stage(
        "interpretability/{name}",
        inputs=_autoencoder,
        fingerprint=scores_fingerprint,
        make=make_scores,
        load=table_of("scores"),
        measure=summarise_scores,
        results="interpretability",
    ),
    "untrained": Stage(
        "interpretability/untrained-{name}",
        inputs=("tokens",),
        fingerprint=untrained_fingerprint,
        make=make_untrained,
        load=load_autoencoder,
        trains=True,
    ),
    "clusters": Stage(
        "clusters/{name}",
        inputs=lambda run, name: [("scores", name)],
        fingerprint=clusters_fingerprint,
        make=make_clusters,
        load=table_of("clusters"),
        measure=summarise_clusters,
        results="clusters",
    ),
    "circuits": Stage(
        "circuits/{name}",
        inputs=lambda run, name: [("scores", name)],
        fingerprint=circuits_fingerprint,
        make=make_circuits,
        load=load_circuits,
        measure=summarise_circuits,
        results="circuits",
    ),
}

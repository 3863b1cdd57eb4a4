"""`make check-toy`: every toy experiment at full size, cached, its outcomes gated; never on one seed."""

import hashlib
import inspect
import json
import logging
import multiprocessing
import re
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path

import plotly.graph_objects as go
import torch

from sae_lib import figures
from sae_lib.errors import SettingsError
from sae_lib.progress import tqdm
from sae_lib.toy import autoencoder as toy_autoencoder
from sae_lib.toy import experiments as toy_experiments
from sae_lib.toy import figures as toy_figures
from sae_lib.toy import figures_neurons as toy_figures_neurons
from sae_lib.toy import gates as toy_gates
from sae_lib.toy import models as toy_models
from sae_lib.toy import neurons as toy_neurons
from sae_lib.toy import recipes as toy_recipes
from sae_lib.toy import variants as toy_variants
from sae_lib.toy.experiments import size_of

MODULES = (toy_experiments, toy_neurons, toy_variants, toy_autoencoder, toy_recipes)
EXPERIMENTS: dict[str, Callable[[str], dict]] = {
    name: getattr(module, name) for module in MODULES for name in module.SIZES
}
log = logging.getLogger(__name__)


# Source as imported, without the tables of sizes: each experiment's own size is hashed beside it.
SOURCES = {
    module: re.sub(r"^SIZES.*?^}$", "", inspect.getsource(module), flags=re.DOTALL | re.MULTILINE)
    for module in (toy_models, *MODULES)
}


def cache_key(name: str, preset: str) -> str:
    """Hash of an experiment's size and of the source it runs on: a changed setting or a changed line runs anew."""
    module = inspect.getmodule(EXPERIMENTS[name])
    made_of = [
        name,
        preset,
        asdict(size_of(name, preset, module.SIZES)),
        *(SOURCES[m] for m in {toy_models, toy_experiments, module}),
    ]
    return hashlib.sha256(json.dumps(sorted(map(str, made_of))).encode()).hexdigest()[:16]


def result(name: str, preset: str, folder: Path | None = None) -> dict:
    """One experiment's result, from `folder/<name>.<preset>.json` when that was made from the same settings and source."""
    if name not in EXPERIMENTS:
        raise SettingsError(
            f"toy experiment {name!r} does not exist; there are: {', '.join(EXPERIMENTS)}"
        )
    key, path = cache_key(name, preset), folder / f"{name}.{preset}.json" if folder else None
    if path and path.is_file():
        try:
            saved = json.loads(path.read_text())
        except json.JSONDecodeError:  # cut short by a kill: run it again
            saved = {}
        if saved.get("key") == key:
            return saved["result"]
    start, cpu = time.perf_counter(), time.process_time()
    with toy_models.one_thread():
        out = EXPERIMENTS[name](preset)
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(".part")
        draft.write_text(
            json.dumps(
                {
                    "key": key,
                    "seconds": round(time.perf_counter() - start, 1),
                    "cpu_seconds": round(time.process_time() - cpu, 1),
                    "result": out,
                }
            )
        )
        draft.replace(path)
    return out


def check_toy(folder: Path, preset: str = "full") -> bool:
    """Run every experiment into `folder/cache`, write `results.json`, `gates.json`, `gates.md` and figures; whether all gates passed.

    An interrupted run continues with the experiments that are missing. Gates are made for the full preset.
    Each experiment runs on one thread, so as many run at once as torch has threads.
    """
    folder = Path(folder)
    start = time.perf_counter()
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(torch.get_num_threads(), spawn) as pool:
        # The last of the table take longest, so they start first.
        runs = [
            pool.submit(result, name, preset, folder / "cache") for name in [*EXPERIMENTS][::-1]
        ]
        for run in tqdm(as_completed(runs), desc="toy experiments", total=len(runs)):
            run.result()
    results = {name: result(name, preset, folder / "cache") for name in EXPERIMENTS}
    rows = toy_gates.all_gates(results.__getitem__)
    seconds = {
        name: json.loads((folder / "cache" / f"{name}.{preset}.json").read_text())["seconds"]
        for name in EXPERIMENTS
    }
    summary = {
        "preset": preset,
        "passed": sum(row["passed"] for row in rows),
        "gates": rows,
        "seconds": seconds,
        "observations": results["five_cases"]["observations"],
        "recipes": toy_recipes.table(results["recipes"])
        .reset_index(names="recipe")
        .to_dict("records"),
    }
    (folder / "gates.json").write_text(json.dumps(summary, indent=1, ensure_ascii=False) + "\n")
    (folder / "gates.md").write_text(gates_table(rows))
    for name, fig in all_figures(results).items():
        figures.save(
            fig, folder / "figures", name, fig.layout.width or 900, fig.layout.height or 450
        )
    log.info(
        "toy check: %d of %d gates passed in %.0f s",
        summary["passed"],
        len(rows),
        time.perf_counter() - start,
    )
    return all(row["passed"] for row in rows)


def all_figures(r: dict[str, dict]) -> dict[str, go.Figure]:
    """Every figure by name, from every experiment's result."""
    plain, neurons = toy_figures, toy_figures_neurons
    return {
        "toy_introduction": plain.introduction(r["introduction"]),
        "toy_introduction_seeds": plain.introduction_seeds(r["introduction"]),
        "toy_weights_and_norms": plain.weights_and_norms(r["weights_and_norms"]),
        "toy_weights_and_norms_large": plain.weights_and_norms(r["weights_and_norms_large"]),
        "toy_linear_control": plain.weights_and_norms(
            r["linear_control"], "The same without the ReLU: no superposition"
        ),
        "toy_phase_diagram": plain.phase_diagram(
            {
                "2 features in 1 dimension": r["phase_diagram"],
                "3 features in 2 dimensions": r["phase_diagram_three"],
            }
        ),
        "toy_plateaus": plain.plateaus(r["uniform_superposition"]),
        "toy_varied_density": plain.varied_density(r["varied_density"]),
        "toy_correlated": plain.correlated(
            r["correlated_pairs"], r["anticorrelated_pairs"]["xavier"], r["correlated_sets"]
        ),
        "toy_learning_dynamics": plain.learning_dynamics(r["learning_dynamics"]),
        "toy_adversarial": plain.adversarial(r["adversarial"]),
        "toy_five_cases": plain.five_cases(r["five_cases"]),
        "toy_privileged_basis": neurons.privileged_basis(r["privileged_basis"]),
        "toy_absolute_value": neurons.two_layers(
            r["absolute_value"], "y = |x|: each feature has one positive and one negative neuron"
        ),
        "toy_absolute_value_large": neurons.absolute_value_large(r["absolute_value_large"]),
        "toy_asymmetric_motif": neurons.two_layers(
            r["asymmetric_motif"],
            "y = |x|, 6 features through 10 neurons: large in, small out, and the reverse",
        ),
        "toy_dropout": neurons.dropout(r["dropout"]),
        "toy_square": neurons.square(r["square"]),
        "toy_pair_functions": neurons.pair_functions(r["pair_functions"]),
        "toy_many_hidden": neurons.many_hidden(r["many_hidden"]),
        "toy_value_types": neurons.value_types(r["value_types"]),
        "toy_gelu": neurons.gelu(r["gelu"]),
        "toy_classification": neurons.classification(r["classification"]),
        "toy_autoencoder": neurons.autoencoder(r["autoencoder"]),
        "toy_shrinkage": neurons.shrinkage(r["autoencoder"]),
    }


def gates_table(rows: list[dict]) -> str:
    """The gates as a Markdown table."""
    show = lambda v: ", ".join(f"{x:.4g}" for x in v) if isinstance(v, list) else f"{v:.4g}"  # noqa: E731
    lines = [
        f"| {row['experiment']} | {row['what'].replace('|', '∣')} | {show(row['measured'])} | {row['expected'].replace('|', '∣')} | {'pass' if row['passed'] else 'FAIL'} |"
        for row in rows
    ]
    return (
        "\n".join(
            ["| experiment | what | measured | expected | |", "|---|---|---|---|---|", *lines]
        )
        + "\n"
    )


PUBLISHED = (
    Path(__file__).parents[2] / "report" / "toy"
)  # the last full check that the repository keeps
PUBLISHED_FIGURES = {
    "toy_weights_and_norms_large": "Eighty features in twenty dimensions.",
    "toy_varied_density": "One feature of another density among equals.",
    "toy_learning_dynamics": "Features appear one after another and settle at half a dimension each.",
    "toy_adversarial": "Loss added by an attack: it grows with features per dimension on the same inputs for all models, but not on inputs of each model's own density.",
    "toy_privileged_basis": "A ReLU on the hidden layer gives it a privileged basis.",
    "toy_absolute_value": "Three absolute values through six neurons.",
}


def publish(folder: Path, to: Path = PUBLISHED) -> Path:
    """Keep a full check in the repository: its gates, and the figures that the report shows."""
    (to / "figures").mkdir(parents=True, exist_ok=True)
    shutil.copy2(folder / "gates.json", to / "gates.json")
    for name in PUBLISHED_FIGURES:
        shutil.copy2(folder / "figures" / f"{name}.png", to / "figures" / f"{name}.png")
    return to


def published_summary() -> dict:
    """The gates of the published check; empty where there is none."""
    path = PUBLISHED / "gates.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def copy_published_figures(folder: Path) -> dict[str, str]:
    """Put the published check's figures into `folder`, as `full_<name>.png`; returns their captions by name."""
    there = {
        name: caption
        for name, caption in PUBLISHED_FIGURES.items()
        if (PUBLISHED / "figures" / f"{name}.png").is_file()
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name in there:
        shutil.copy2(PUBLISHED / "figures" / f"{name}.png", folder / f"full_{name}.png")
    return {f"full_{name}": caption for name, caption in there.items()}

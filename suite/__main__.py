"""The command line: `python -m suite run | stage | sweep | study | clamp | explain | browser | export | report | lab | doctor | check-toy`."""

import subprocess
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from sae_lib.errors import SettingsError, UserError
from suite import stages

app = typer.Typer(
    help="Monosemanticity at Home: from text to readable features.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

Profile = Annotated[
    str,
    typer.Option(
        help="smoke (tests), laptop (two cores, no network) or runpod (the original's scale, one GPU)"
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="override a setting, for example --set sae.d_sae=8192; may be given several times",
    ),
]
RunDir = Annotated[
    str,
    typer.Option(
        "--run", help="run folder; by default runs/<profile>, with overrides runs/<profile>-<hash>"
    ),
]


class Stage(StrEnum):
    corpus = "corpus"
    lm = "lm"
    sae = "sae"
    evaluate = "evaluate"
    features = "features"
    score = "score"
    clusters = "clusters"
    report = "report"


STAGE_NAMES = {
    Stage.corpus: "tokens",
    Stage.lm: "language_model",
    Stage.sae: "autoencoder",
    Stage.features: "features",
    Stage.score: "scores",
    Stage.clusters: "clusters",
}


class How(StrEnum):
    pin = "pin"
    scale = "scale"
    ablate = "ablate"


@app.command()
def run(
    profile: Profile = "laptop",
    only: Annotated[str, typer.Option(help="numbers of notebooks, for example 03 or 02,03")] = "",
    set_: Set = None,
    run_dir: RunDir = "",
    parameter: Annotated[
        list[str] | None,
        typer.Option("--parameter", "-p", help="a notebook's own parameter, name=value"),
    ] = None,
) -> None:
    """Run the notebooks in order and write the report."""
    from suite import headless
    from suite.report import write_report
    from suite.report.machine import machine

    opened = stages.open_run(profile, run_dir, set_ or [])
    typer.echo(f"run folder: {opened.folder}")
    extra = dict(_name_and_value(p) for p in parameter or [])
    seconds = headless.run_notebooks(opened, set_ or [], only, extra, typer.echo)
    if only:
        return
    if (
        opened.results_folder / "run.json"
    ).exists():  # a repeated run finds its stages made: the first time is the true one
        before = opened.load_results("run")["seconds"]
        seconds = {name: max(value, before.get(name, 0)) for name, value in seconds.items()}
    opened.save_results("run", {"seconds": seconds, "machine": machine()})
    typer.echo(f"report: {write_report(opened)}")


@app.command()
def stage(name: Stage, profile: Profile = "laptop", set_: Set = None, run_dir: RunDir = "") -> None:
    """Make one stage's artefact, and what it needs before it, without notebooks. A finished stage is not redone."""
    from sae_lib.sae.engine import distributed
    from suite import stages
    from suite.report import write_report

    distributed.start()
    if distributed.rank_and_world_size()[1] > 1 and name is not Stage.sae:
        raise SettingsError(
            f"stage {name.value}: only the stage sae runs in several processes; start this one without torchrun"
        )
    with distributed.first_process_first():
        opened = stages.open_run(profile, run_dir, set_ or [])
    if name is Stage.report:
        made = write_report(opened)
    elif name is Stage.evaluate:
        opened.results("evaluation")
        made = opened.results_folder
    else:
        made = opened.path(STAGE_NAMES[name])
    typer.echo(f"{name.value}: {made}")


@app.command()
def sweep(profile: Profile = "laptop", set_: Set = None, run_dir: RunDir = "") -> None:
    """Train a grid of autoencoders, for example --set sae.recipe=bricken_2023,topk --set sae.seed=0,1, and draw its frontier."""
    from suite.sweep import sweep as train_grid

    typer.echo(f"sweep: {train_grid(profile, run_dir, set_ or [])}")


class Study(StrEnum):
    recipes = "recipes"
    widths = "widths"
    classical = "classical"


@app.command()
def study(
    which: Study,
    profile: Profile = "laptop",
    set_: Set = None,
    run_dir: RunDir = "",
    publish: Annotated[
        bool, typer.Option(help="also copy it to ./report/studies/, for the report")
    ] = False,
) -> None:
    """Many autoencoders on one language model, at the same L0 and over seeds: the recipes, the widths, or the classical recipe's settings."""
    from suite import studies

    opened = stages.open_run(profile, run_dir, set_ or [])
    studies.study(opened, which.value)
    typer.echo(f"study: {opened.results_folder / f'study_{which.value}.json'}")
    if publish:
        typer.echo(f"published: {studies.publish(opened)}")


@app.command()
def clamp(
    prompt: Annotated[str, typer.Argument(help="text to continue")],
    feature: Annotated[
        list[int], typer.Option(help="a feature's number; may be given several times")
    ],
    value: Annotated[
        list[float] | None,
        typer.Option(
            help="what it is pinned to or scaled by; one for all features, or one for each"
        ),
    ] = None,
    how: Annotated[
        How, typer.Option(help="pin f = value, scale f = value · f, or ablate f = 0")
    ] = How.pin,
    position: Annotated[
        list[int] | None,
        typer.Option(
            help="only at this token of the text, negative from its end; may be given several times"
        ),
    ] = None,
    drop_error: Annotated[
        bool,
        typer.Option(
            help="the reconstruction goes on from the hook, without what the autoencoder leaves unexplained"
        ),
    ] = False,
    new_tokens: Annotated[
        int, typer.Option(min=0, help="length of the continuations; 0 for none")
    ] = 40,
    temperature: Annotated[
        float, typer.Option(min=0, help="of sampling; 0 takes the most probable token")
    ] = 0.8,
    seed: Annotated[
        int, typer.Option(help="of the random numbers that both continuations share")
    ] = 0,
    last_mlp: Annotated[
        bool, typer.Option(help="the deeper model of notebook 05 instead of the 1-layer model")
    ] = False,
    profile: Profile = "laptop",
    set_: Set = None,
    run_dir: RunDir = "",
) -> None:
    """Clamp features while the model runs: the next token before and after, and both continuations at the same random numbers."""
    from suite import clamping_views

    clamps = clamping_views.clamps_of(feature, how.value, value or [], position or [])
    opened = stages.open_run(profile, run_dir, set_ or [])
    typer.echo(
        clamping_views.command(
            opened.last_mlp() if last_mlp else opened,
            prompt,
            clamps,
            not drop_error,
            new_tokens,
            temperature,
            seed,
        )
    )


@app.command()
def explain(
    features: Annotated[
        int,
        typer.Option(min=0, help="how many, drawn at random; 0: explain.features of the settings"),
    ] = 0,
    model: Annotated[
        str,
        typer.Option(
            help="a Hugging Face chat model (folder or name), or the model's name at SAE_LLM_BASE_URL"
        ),
    ] = "",
    profile: Profile = "laptop",
    set_: Set = None,
    run_dir: RunDir = "",
) -> None:
    """Let a chat model explain features and test the explanations; skipped where there is no model (SAE_LLM_BASE_URL, SAE_LLM_MODEL, SAE_LLM_API_KEY)."""
    from suite.explain import explain as explain_features

    explain_features(stages.open_run(profile, run_dir, set_ or []), features, model, say=typer.echo)


@app.command()
def export(
    sae: Annotated[
        Path,
        typer.Argument(help="an autoencoder's folder, for example runs/laptop/saes/bricken_2023"),
    ],
    out: Path,
) -> None:
    """Write an autoencoder in dictionary_learning's format. (The folder itself is SAELens' own format.)"""
    from sae_lib.sae.autoencoder import SparseAutoencoder
    from sae_lib.sae.export import to_dictionary_learning
    from suite.runs import check_own

    check_own(out, "export OUT", "ae.pt")
    typer.echo(f"exported: {to_dictionary_learning(SparseAutoencoder.load(sae), out)}")


@app.command()
def report(
    profile: Profile = "laptop",
    set_: Set = None,
    run_dir: RunDir = "",
    publish: Annotated[
        bool, typer.Option(help="also copy it to ./report.md and ./report/")
    ] = False,
) -> None:
    """Write the report of a finished run from its results."""
    from suite.report import publish_report, write_report

    opened = stages.open_run(profile, run_dir, set_ or [])
    typer.echo(f"report: {write_report(opened)}")
    if publish:
        typer.echo(f"published: {publish_report(opened)}")


@app.command()
def browser(
    profile: Profile = "laptop",
    set_: Set = None,
    run_dir: RunDir = "",
    name: Annotated[str, typer.Option(help="another autoencoder of the run, or neurons")] = "",
) -> None:
    """Write browser.html: all features and the model in one page that opens from disk."""
    from suite.browser.single_file import write_browser

    typer.echo(f"browser: {write_browser(stages.open_run(profile, run_dir, set_ or []), name)}")


@app.command()
def lab() -> None:
    """Open the notebooks in JupyterLab."""
    from suite.headless import ROOT

    raise typer.Exit(
        subprocess.call([sys.executable, "-m", "jupyter", "lab", str(ROOT / "notebooks")], cwd=ROOT)
    )


@app.command()
def doctor(profile: Profile = "laptop") -> None:
    """What works and what does not on this machine, and how to fix each failure."""
    from suite import doctor as doctor_module

    checks = doctor_module.check(profile)
    typer.echo(doctor_module.report(checks, profile))
    raise typer.Exit(0 if doctor_module.can_run(checks) else 1)


@app.command("check-toy")
def check_toy(
    out: Annotated[Path, typer.Option(help="folder for cached results, table and figures")] = Path(
        "runs/toy"
    ),
    preset: str = "full",
    publish: Annotated[
        bool, typer.Option(help="also copy gates and figures to ./report/toy/, for the report")
    ] = False,
) -> None:
    """Every toy-model experiment at full size, held against its known results."""
    from sae_lib.toy import check as toy_check

    passed = toy_check.check_toy(out, preset)
    if publish:
        typer.echo(f"published: {toy_check.publish(out)}")
    raise typer.Exit(0 if passed else 1)


def _name_and_value(text: str) -> tuple[str, object]:
    import yaml

    name, equals, value = text.partition("=")
    if not equals:
        raise SettingsError(f"-p {text!r}: expected name=value")
    return name, yaml.safe_load(value)


def main() -> None:
    """Run the command line; a `UserError` becomes one line on stderr and exit status 2."""
    try:
        app()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.status)


if __name__ == "__main__":
    main()

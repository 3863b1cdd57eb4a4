"""The command line: `python -m suite run | stage | sweep | study | sanity | clamp | why |
explain | browser | export | report | verify | doctor`.
"""

import signal
import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer
from typer.exceptions import TyperException

from sae_lib.errors import GOES_ON, Interrupted, SettingsError, UserError, plain

app = typer.Typer(
    help="Monosemanticity at Home: from text to readable features.",
    pretty_exceptions_enable=False,
    add_completion=False,
)

Profile = Annotated[
    str,
    typer.Option(
        help="smoke (tests), laptop (two cores, no network) or runpod (the original's scale, one "
        "GPU)"
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

Publish = Annotated[bool, typer.Option(help="also copy it to ./report/studies/, for the report")]

LastMLP = Annotated[bool, typer.Option(help="of the deeper model's last MLP, see notebook 05")]
Split = Annotated[bool, typer.Option(help="under torchrun: features split over the processes")]

STAGES = {
    "corpus": "tokens",
    "lm": "language_model",
    "sae": "autoencoder",
    "evaluate": "evaluation",
    "features": "features",
    "score": "scores",
    "clusters": "clusters",
    "circuits": "circuits",
    "report": "",
}
STUDIES = ("recipes", "widths", "classical", "resampling", "deviations", "full_budget")
STUDIES += ("transcoder", "absorption", "universality", "gaussian", "larger")


@app.command()
def run(
    profile: Profile = "laptop",
    only: Annotated[str, typer.Option(help="numbers of notebooks, for example 03 or 02,03")] = "",
    set_: Set = None,
    run_dir: RunDir = "",
) -> None:
    """Run the notebooks in order and write the report."""
    opened = _open(profile, run_dir, set_)
    from suite import headless, locks
    from suite.report import write_report
    from suite.report.machine import machine

    typer.echo(f"run folder: {opened.folder}")
    with locks.locked(opened.folder, locks.HEADLESS, wait=False):
        seconds = headless.run_notebooks(opened, set_ or [], only, typer.echo)
    if only:
        return
    before = (opened.find_results("run") or {}).get("seconds", {})
    # stages made earlier took their time then
    seconds = {name: max(value, before.get(name, 0)) for name, value in seconds.items()}
    opened.save_results("run", {"seconds": seconds, "machine": machine()})
    typer.echo(f"report: {write_report(opened)}")


@app.command()
def stage(
    name: Literal[*STAGES],
    profile: Profile = "laptop",
    set_: Set = None,
    run_dir: RunDir = "",
    last_mlp: LastMLP = False,
    split: Split = False,
) -> None:
    """Make one stage's artefact, and what it needs before it, without notebooks. A finished
    stage is not redone.
    """
    from sae_lib.settings import load

    load(profile, set_ or [])  # so that a mistake is told before slow imports
    from sae_lib.sae.engine import distributed
    from sae_lib.sae.engine.split import SplitFeatures

    distributed.start()
    if split:
        distributed.TEAM = SplitFeatures()
    if distributed.rank_and_world_size()[1] > 1 and name != "sae":
        raise SettingsError(
            f"stage {name}: only the stage sae runs in several processes; start this one "
            "without torchrun"
        )
    with distributed.first_process_first():
        opened = _open(profile, run_dir, set_)
    if STAGES[name]:
        made = (opened.last_mlp() if last_mlp else opened).path(STAGES[name])
    else:
        from suite.report import write_report  # takes a while to import

        made = write_report(opened)
    typer.echo(f"{name}: {made}")


@app.command()
def sweep(profile: Profile = "laptop", set_: Set = None, run_dir: RunDir = "") -> None:
    """Train a grid of autoencoders, for example --set sae.recipe=bricken_2023,topk --set
    sae.seed=0,1, and draw its frontier.
    """
    from suite.sweep import sweep as train_grid

    typer.echo(f"sweep: {train_grid(profile, run_dir, set_ or [])}")


@app.command()
def study(
    which: Literal[*STUDIES],
    profile: Profile = "laptop",
    set_: Set = None,
    run_dir: RunDir = "",
    publish: Publish = False,
) -> None:
    """Many autoencoders on one language model, over seeds: the recipes or the widths at the same
    L0, the classical recipe's settings, resampling from two starts, the original's deviations one
    at a time; the original once at its full budget; a transcoder in place of the MLP; how far
    recipes absorb features; whether models of other seeds learn the same features; whether width
    buys more than on a Gaussian like the activations; or a larger run to stand beside the report's.
    """
    opened = _open(profile, run_dir, set_)
    from suite import (
        absorption,
        deviations,
        gallery,
        larger,
        studies,
        study_figures,
        transcoders,
        universality,
    )

    make = {"deviations": deviations.study, "full_budget": deviations.full_budget}
    make |= {"transcoder": transcoders.study, "absorption": absorption.study}
    make |= {"universality": universality.study}
    make |= {"larger": partial(larger.study, summary=gallery.summary)}
    make[which](opened) if which in make else studies.study(opened, which)
    typer.echo(f"study: {opened.results_folder / f'study_{which}.json'}")
    if publish:
        typer.echo(f"published: {study_figures.publish(opened)}")


@app.command()
def sanity(
    sae: Annotated[
        Path | None,
        typer.Option(help="an autoencoder's folder in SAELens' layout, trained on this run's hook"),
    ] = None,
    profile: Profile = "laptop",
    set_: Set = None,
    run_dir: RunDir = "",
    publish: Publish = False,
) -> None:
    """What an autoencoder has to beat: frozen weights, fresh language models, neurons, principal
    and random directions at the same L0, over seeds.
    """
    opened = _open(profile, run_dir, set_)
    from suite import sanity as baselines
    from suite import sanity_views, study_figures

    typer.echo(sanity_views.sentence(baselines.study(opened, sae)))
    typer.echo(f"study: {opened.results_folder / 'study_sanity.json'}")
    if publish:
        typer.echo(f"published: {study_figures.publish(opened)}")


def _prompt(text: str) -> str:
    """A prompt of 1 to a million characters that UTF-8 can write."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise SettingsError(f"the prompt {text[:40]!r} is not valid UTF-8; expected text") from None
    if not 0 < len(text) <= 10**6:
        raise SettingsError(f"the prompt has {len(text):,} characters; expected 1 to 1,000,000")
    return text


Value = Annotated[
    list[float] | None,
    typer.Option(
        min=-(10**6),
        max=10**6,
        help="what it is pinned to or scaled by; one for all features, or one for each",
    ),
]
Position = Annotated[
    list[int] | None,
    typer.Option(
        help="only at this token of the text, negative from its end; may be given several times"
    ),
]
DropError = Annotated[
    bool,
    typer.Option(
        help="the reconstruction goes on from the hook, without what the autoencoder leaves "
        "unexplained"
    ),
]
Seed = Annotated[
    int,
    typer.Option(min=0, max=2**63 - 1, help="of the random numbers that both continuations share"),
]
How = Annotated[
    Literal["pin", "scale", "ablate"],
    typer.Option(help="pin f = value, scale f = value · f, or ablate f = 0"),
]
LastMLP = Annotated[
    bool, typer.Option(help="the deeper model of notebook 05 instead of the 1-layer model")
]


@app.command()
def clamp(
    prompt: Annotated[str, typer.Argument(help="text to continue", callback=_prompt)],
    feature: Annotated[
        list[int], typer.Option(min=0, help="a feature's number; may be given several times")
    ],
    value: Value = None,
    how: How = "pin",
    position: Position = None,
    drop_error: DropError = False,
    new_tokens: Annotated[
        int, typer.Option(min=0, max=10**6, help="length of the continuations; 0 for none")
    ] = 40,
    temperature: Annotated[
        float,
        typer.Option(min=0, max=100, help="of sampling; 0 takes the most probable token"),
    ] = 0.8,
    seed: Seed = 0,
    last_mlp: LastMLP = False,
    profile: Profile = "laptop",
    set_: Set = None,
    run_dir: RunDir = "",
) -> None:
    """Clamp features while the model runs: the next token before and after, and both
    continuations at the same random numbers.
    """
    from suite import clamping_views

    clamps = clamping_views.clamps_of(feature, how, value or [], position or [])
    opened = _open(profile, run_dir, set_, reading=True)
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
def why(
    text: Annotated[
        str, typer.Argument(help="text in which the feature may fire", callback=_prompt)
    ],
    feature: Annotated[int, typer.Option(min=0, help="a feature's number")],
    position: Annotated[
        int | None,
        typer.Option(
            help="the token to explain, negative from the end; by default where the feature's "
            "pre-activation is largest"
        ),
    ] = None,
    last_mlp: LastMLP = False,
    profile: Profile = "laptop",
    set_: Set = None,
    run_dir: RunDir = "",
) -> None:
    """Why a feature fires on a text: what its token, its position, every head's source tokens and
    the biases add, exactly.
    """
    opened = _open(profile, run_dir, set_, reading=True)
    from suite.why import why as explained

    typer.echo(explained(opened.last_mlp() if last_mlp else opened, feature, text, position))


@app.command()
def explain(
    features: Annotated[
        int,
        typer.Option(
            min=0, max=10**6, help="how many, drawn at random; 0: explain.features of the settings"
        ),
    ] = 0,
    model: Annotated[
        str,
        typer.Option(
            help="a Hugging Face chat model (folder or name), or the model's name at "
            "SAE_LLM_BASE_URL"
        ),
    ] = "",
    profile: Profile = "laptop",
    set_: Set = None,
    run_dir: RunDir = "",
) -> None:
    """Let a chat model explain features and test the explanations; skipped where there is no
    model (SAE_LLM_BASE_URL, SAE_LLM_MODEL, SAE_LLM_API_KEY).
    """
    from suite.explain import explain as explain_features

    opened = _open(profile, run_dir, set_, reading=True)
    explain_features(opened, features, model, say=typer.echo)


@app.command()
def export(
    sae: Annotated[
        Path,
        typer.Argument(help="an autoencoder's folder, for example runs/laptop/saes/bricken_2023"),
    ],
    out: Path,
) -> None:
    """Write an autoencoder in dictionary_learning's format. (The folder itself is SAELens' own
    format.)
    """
    from sae_lib.sae.autoencoder import SparseAutoencoder
    from sae_lib.sae.export import to_dictionary_learning
    from suite.runs import check_own

    check_own(out, "export OUT", "ae.pt")
    typer.echo(f"exported: {to_dictionary_learning(SparseAutoencoder.load(sae), out)}")


@app.command()
def blind(
    folder: Annotated[Path, typer.Argument(help="where the sheets and the answers lie")],
    by: Annotated[str, typer.Option(help="who the readers are, for the report")] = "two readers",
    seed: Annotated[int, typer.Option(min=0, help="which units are drawn")] = 0,
    profile: Profile = "laptop",
    set_: Set = None,
    run_dir: RunDir = "",
    publish: Publish = False,
) -> None:
    """A blind test of names: writes a sheet of features and neurons to be named by one reader, then
    sheets of names to be matched by others, then the score. Each call takes the next step.
    """
    opened = _open(profile, run_dir, set_, reading=True)
    from suite import blind_test, study_figures

    typer.echo(blind_test.proceed(opened, folder, by, seed))
    if publish:
        typer.echo(f"published: {study_figures.publish(opened)}")


@app.command()
def report(
    profile: Profile = "laptop",
    set_: Set = None,
    run_dir: RunDir = "",
    publish: Annotated[
        bool, typer.Option(help="also copy it to ./report.md and ./report/")
    ] = False,
    check: Annotated[
        bool,
        typer.Option(help="instead: is ./report.md what its results in ./report/ say?"),
    ] = False,
) -> None:
    """Write the report of a finished run from its results."""
    from suite import project
    from suite.report import check as checking
    from suite.report import publish_report, write_report

    if check:
        n = checking.check(project.root())
        typer.echo(f"report.md: all {n:,} lines follow from report/results")
        return
    opened = _open(profile, run_dir, set_, reading=True)
    typer.echo(f"report: {write_report(opened)}")
    if publish:
        typer.echo(f"published: {publish_report(opened)}")


@app.command()
def verify(
    seed: Annotated[
        int, typer.Option(min=0, help="which numbers are drawn; 0: others every time")
    ] = 0,
) -> None:
    """Compute ten numbers of the committed report again, from its published weights and the
    installed packages' text. Downloads nothing.
    """
    import time

    from suite import project
    from suite import verify as verifying

    seed = seed or time.time_ns()
    typer.echo(f"ten numbers, drawn with --seed {seed}")
    right = []
    for holds, line in verifying.lines(project.root(), seed):
        typer.echo(line)
        right.append(holds)
    raise typer.Exit(0 if all(right) else 1)


@app.command()
def browser(
    profile: Profile = "laptop",
    set_: Set = None,
    run_dir: RunDir = "",
    name: Annotated[str, typer.Option(help="another autoencoder of the run, or neurons")] = "",
    sae: Annotated[
        Path | None,
        typer.Option(help="any autoencoder's folder in SAELens' layout; with --model and --text"),
    ] = None,
    model: Annotated[str, typer.Option(help="its language model: a folder or a hub name")] = "",
    text: Annotated[str, typer.Option(help="text to look at: a file, folder or glob")] = "",
    tokens: Annotated[int, typer.Option(min=1, help="of that text, at most")] = 200_000,
    out: Annotated[Path, typer.Option(help="the page of --sae")] = Path("browser.html"),
) -> None:
    """Write browser.html: all features and the model in one page that opens from disk; of a run,
    or of any autoencoder with --sae, --model and --text.
    """
    from suite.browser.single_file import write_any, write_browser

    given = {"--sae": sae, "--model": model, "--text": text}
    if missing := [option for option, value in given.items() if not value]:
        if len(missing) < len(given):
            raise SettingsError(f"{missing[0]} is missing; expected {', '.join(given)} together")
        opened = _open(profile, run_dir, set_, reading=True)
        typer.echo(f"browser: {write_browser(opened, name)}")
    else:
        typer.echo(f"browser: {write_any(sae, model, text, tokens, out)}")


@app.command()
def doctor(profile: Profile = "laptop") -> None:
    """What works and what does not on this machine, and how to fix each failure."""
    from suite import doctor as doctor_module

    checks = doctor_module.check(profile)
    typer.echo(doctor_module.report(checks, profile))
    raise typer.Exit(0 if doctor_module.can_run(checks) else 1)


def _open(profile: str, run_dir: str, set_: list[str] | None, reading: bool = False):
    """The run, opened; mistakes in settings are told before the slow imports."""
    from sae_lib.settings import load

    load(profile, set_ or [])
    from suite import stages

    return stages.open_run(profile, run_dir, set_ or [], reading)


def main() -> None:
    """Run the command line; what its user or the system can cause becomes one line on stderr and
    an exit status.
    """
    for number in (signal.SIGINT, signal.SIGTERM):  # a shell's background job ignores the first
        signal.signal(number, _stop)
    try:
        status = app(sys.argv[1:] or ["--help"], standalone_mode=False)
    except BaseException as error:
        told = _told(error)
        if told is None:
            raise
        print(f"error: {told}", file=sys.stderr)
        sys.exit(told.status)
    if status == Interrupted.status:  # what typer makes of Ctrl-C
        print(f"error: interrupted; {GOES_ON}", file=sys.stderr)
    sys.exit(status or 0)


def _told(error: BaseException) -> UserError | None:
    if isinstance(error, TyperException):  # an unknown command or option, a value of the wrong kind
        line = " ".join(error.format_message().split())
        return UserError(f"{line[:300]} (python -m suite --help lists commands)")
    return error if isinstance(error, UserError) else plain(error)


def _stop(*_: object) -> None:
    """SIGTERM is handled as Ctrl-C: scratch files are removed, and one line says how to
    continue.
    """
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()

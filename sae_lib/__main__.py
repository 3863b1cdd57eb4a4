"""The command line: `python -m sae_lib doctor`."""

import sys

import typer

from sae_lib.errors import UserError

app = typer.Typer(help=__doc__, no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False)


@app.callback()
def _root() -> None:
    """Monosemanticity at Home: from text to readable features."""


@app.command()
def doctor(profile: str = typer.Option("laptop", help="smoke, laptop or runpod: whose needs decide the exit status")) -> None:
    """What is there and what is off on this machine, with the mend for each failure."""
    from sae_lib import doctor as doctor_module

    checks = doctor_module.check(profile)
    typer.echo(doctor_module.report(checks, profile))
    raise typer.Exit(0 if doctor_module.can_run(checks) else 1)


def main() -> None:
    """Run the command line; a `UserError` becomes one line on stderr and exit status 2."""
    try:
        app()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()

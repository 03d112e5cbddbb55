"""``koopcore reproduce EXPERIMENT``: one command per experiment, each a module of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from koopcore.lab.experiments.learning_commands import add_learning_commands

app = typer.Typer(
    help="Repeat an experiment of the literature and print it beside the published figures.",
    no_args_is_help=True,
)

EXPERIMENTS: dict[str, tuple[str, str]] = {
    "table1": (
        "koopcore.lab.experiments.table1",
        "Oscillator, 25 networks, three optimizers (Dogra & Redman 2020, Table 1).",
    ),
    "table2": (
        "koopcore.lab.experiments.table2",
        "MNIST, 10 seeds, minibatch Adadelta (Dogra & Redman 2020, Table 2).",
    ),
    "figure2": (
        "koopcore.lab.experiments.figure2",
        "Oscillator: loss and weights, trained and predicted (Dogra & Redman 2020, Fig. 2).",
    ),
    "figure3": (
        "koopcore.lab.experiments.figure3",
        "MNIST: validation loss, trained and predicted (Dogra & Redman 2020, Fig. 3).",
    ),
    "end-to-end": (
        "koopcore.lab.experiments.end_to_end",
        "Oscillator: steps and seconds to a loss, against tuned plain training.",
    ),
    "end-to-end-mnist": (
        "koopcore.lab.experiments.end_to_end_mnist",
        "MNIST: steps and seconds to a validation loss, against tuned plain training.",
    ),
}
"""Command -> (module, help). A module offers what `reproduce_run.Experiment` says."""

DIGITS = ("table2", "figure3", "end-to-end-mnist")
"""Experiments on MNIST: these take a folder with the full data set."""

INTERRUPTED = 130  # 128 + SIGINT, as shells report it

Quick = Annotated[bool, typer.Option("--quick", help="A small version, about a minute.")]
Output = Annotated[
    Path, typer.Option(help="Folder for results and pictures.", metavar="FOLDER", file_okay=False)
]
Fresh = Annotated[bool, typer.Option("--fresh", help="Forget cells finished earlier.")]
Only = Annotated[str, typer.Option(help="Cells to compute, a pattern such as 'adam*'.")]


Data = Annotated[
    Path | None,
    typer.Option(
        help="Folder with the four IDX files of MNIST, in place of the 10,000 digits carried.",
        metavar="FOLDER",
        exists=True,
        file_okay=False,
    ),
]


def _add(name: str, module: str, text: str) -> None:
    if name in DIGITS:

        @app.command(name, help=text)
        def digits(
            quick: Quick = False,
            output: Output = Path("koopcore-results"),
            fresh: Fresh = False,
            only: Only = "*",
            data: Data = None,
        ) -> None:
            _compute(name, module, quick=quick, output=output, fresh=fresh, only=only, data=data)

    else:

        @app.command(name, help=text)
        def command(
            quick: Quick = False,
            output: Output = Path("koopcore-results"),
            fresh: Fresh = False,
            only: Only = "*",
        ) -> None:
            _compute(name, module, quick=quick, output=output, fresh=fresh, only=only)


def _compute(name: str, module: str, **options: Any) -> None:
    try:
        from koopcore.lab.experiments.experiment import run

        run(name, module, **options)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing in {"", "koopcore"}:
            raise
        _fail(f'{missing} is not installed: pip install "koopcore[demo]"')
    except (ValueError, OSError) as error:
        _fail(str(error))
    except KeyboardInterrupt:
        _fail("interrupted; finished cells are kept, the same command goes on", INTERRUPTED)


def _fail(message: str, code: int = 2) -> None:
    typer.echo(f"koopcore: {message}", err=True)
    raise typer.Exit(code)


for _name, (_module, _help) in EXPERIMENTS.items():
    _add(_name, _module, _help)
add_learning_commands(app)

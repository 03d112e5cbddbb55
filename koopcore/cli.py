"""The ``koopcore`` command line: every command validates its options, then calls its module."""

from __future__ import annotations

import sys
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

import koopcore
from koopcore.lab.experiments import reproduce

app = typer.Typer(
    help="Koopman operators of training trajectories, thousands at once.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.add_typer(reproduce.app, name="reproduce")

_INTERRUPTED = 130  # 128 + SIGINT, as shells report it


class Optimizer(str, Enum):
    """Keys of `koopcore.lab.problems.descent.OPTIMIZERS`, not importable without torch."""

    adagrad = "adagrad"
    adadelta = "adadelta"
    adam = "adam"


class PartitionName(str, Enum):
    """`koopcore.lab.demo.demo.PARTITIONS`."""

    network = "network"
    layers = "layers"
    nodes = "nodes"
    weights = "weights"


class Model(str, Enum):
    """`koopcore.lab.demo.demo.MODELS`."""

    auto = "auto"
    affine = "affine"
    linear = "linear"
    trend = "trend"


class Precision(str, Enum):
    """Floating-point type of training and snapshots."""

    float32 = "float32"
    float64 = "float64"


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"koopcore {koopcore.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Koopman operators of training trajectories, thousands at once."""


@app.command()
def info() -> None:
    """Print what was built, and which backend runs each stage here, and why not the others."""
    from koopcore.info import report

    typer.echo(report())


@app.command()
def demo(
    optimizer: Annotated[
        list[Optimizer], typer.Option(help="Ordinary training; repeat for several.")
    ] = [Optimizer.adagrad],  # noqa: B006
    partition: Annotated[
        list[PartitionName], typer.Option(help="What shares an operator; repeat for several.")
    ] = [PartitionName.network],  # noqa: B006
    model: Annotated[Model, typer.Option(help="Operator; auto chooses by hindcast.")] = Model.auto,
    networks: Annotated[int, typer.Option(min=1, help="Networks trained as one batch.")] = 12,
    seed: Annotated[int, typer.Option(min=0, help="Of the initial weights.")] = 0,
    steps: Annotated[int, typer.Option(min=0, help="Optimizer steps before recording.")] = 8000,
    window: Annotated[int, typer.Option(min=4, help="Snapshots per fit.")] = 33,
    stride: Annotated[int, typer.Option(min=1, help="Optimizer steps per snapshot.")] = 25,
    horizon: Annotated[
        int | None,
        typer.Option(
            min=1, help="Snapshots to predict.", show_default="80; 32 for adam", metavar="T"
        ),
    ] = None,
    precision: Annotated[
        Precision, typer.Option(help="Of training and snapshots.")
    ] = Precision.float32,
    output: Annotated[
        Path, typer.Option(help="Picture to write: .png, .pdf or .svg.", metavar="PATH")
    ] = Path("koopcore-demo.png"),
) -> None:
    """Train oscillator networks, predict their weights, compare with training on (Dogra 2020)."""
    try:
        from koopcore.lab.demo.command import run

        run(
            output=output,
            precision=precision.value,
            optimizers=tuple(o.value for o in dict.fromkeys(optimizer)),
            partitions=tuple(p.value for p in dict.fromkeys(partition)),
            model=model.value,
            networks=networks,
            seed=seed,
            steps=steps,
            window=window,
            stride=stride,
            horizon=horizon,
        )
    except ModuleNotFoundError as error:
        _explain_missing(error)
    except (ValueError, OSError) as error:
        _fail(str(error))
    except KeyboardInterrupt:
        _fail("interrupted; no picture was written", _INTERRUPTED)


@app.command()
def bench(
    quick: Annotated[
        bool, typer.Option("--quick", help="Small sizes, less than a minute.")
    ] = False,
    only: Annotated[
        str, typer.Option(help="Studies to run, a pattern such as 'p*'.", metavar="PATTERN")
    ] = "*",
    compare: Annotated[
        Path | None,
        typer.Option(
            help="JSON of an earlier run; exit code 1 if a case became slower.",
            metavar="FILE",
            exists=True,
            dir_okay=False,
        ),
    ] = None,
    tolerance: Annotated[
        float, typer.Option(help="Ratio of times that is a regression.", metavar="RATIO")
    ] = 1.25,
    output: Annotated[
        Path, typer.Option(help="Folder for results.", metavar="FOLDER", file_okay=False)
    ] = Path("koopcore-results"),
) -> None:
    """Measure how cost grows, against memory, peers and training steps, on this machine."""
    try:
        from koopcore.lab.bench.run import run

        code = run(output=output, quick=quick, only=only, against=compare, tolerance=tolerance)
    except ModuleNotFoundError as error:
        _explain_missing(error)
    except (ValueError, OSError) as error:
        _fail(str(error))
    except KeyboardInterrupt:
        _fail("interrupted; finished studies are kept", _INTERRUPTED)
    raise typer.Exit(code)


def _explain_missing(error: ModuleNotFoundError) -> NoReturn:
    """One line for a missing third-party package; a missing module of our own is a defect."""
    missing = (error.name or "").partition(".")[0]
    if missing in {"", "koopcore"}:
        raise error
    _fail(f'{missing} is not installed: pip install "koopcore[demo]"')


def _fail(message: str, code: int = 2) -> NoReturn:
    typer.echo(f"koopcore: {message}", err=True)
    raise typer.Exit(code)


def main() -> None:
    """Run the command line; a misspelt option is answered with all that are accepted."""
    try:
        # Not in standalone mode the exit code of typer.Exit is returned, and usage errors come
        # through to be completed.
        code = app(standalone_mode=False)
    except Exception as error:
        # Typer of some versions brings its own click, so its exceptions have no name to import.
        if not (hasattr(error, "show") and hasattr(error, "exit_code")):
            raise
        error.show()
        if hasattr(error, "option_name") and hasattr(error, "possibilities"):
            context: Any = getattr(error, "ctx", None)
            parameters = context.command.get_params(context) if context else []
            accepted = [name for p in parameters for name in p.opts if name.startswith("--")]
            typer.echo(f"Accepted are {', '.join(accepted)}.", err=True)
        code = error.exit_code
    sys.exit(code)

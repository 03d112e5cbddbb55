"""The ``koopcore`` command line: options and their ranges, and how every failure ends."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

import koopcore
from koopcore.lab.options import ModelName, OptimizerName, PartitionName, Precision, Schedule

MISUSE = 2
INTERRUPTED = 130  # 128 + SIGINT, as shells report it

RESULTS = Path("koopcore-results")

_HELP = {"help_option_names": ["-h", "--help"]}
app = typer.Typer(
    help="Koopman operators of training trajectories, thousands at once.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings=_HELP,
)
reproduce = typer.Typer(
    help="Repeat an experiment of the literature and print it beside the published figures.",
    no_args_is_help=True,
    context_settings=_HELP,
)
app.add_typer(reproduce, name="reproduce")


def main() -> None:
    """Run the command line and exit.

    What a user can cause is one line on standard error and exit code 2: bad options and values,
    files, missing packages. An interrupt is exit code 130. Anything else is a defect, with its
    traceback.
    """
    try:
        # Not in standalone mode the code of typer.Exit is returned, usage errors come through.
        code = app(standalone_mode=False) or 0
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED  # which typer returns itself for an interrupt inside a command
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing in {"", "koopcore"}:
            raise
        typer.echo(f'koopcore: {missing} is not installed: pip install "koopcore[demo]"', err=True)
        code = MISUSE
    except (ValueError, OSError) as error:
        typer.echo(f"koopcore: {error}", err=True)
        code = MISUSE
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
    if code == INTERRUPTED:
        typer.echo("koopcore: interrupted; what was finished is kept", err=True)
    sys.exit(code)


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


def _one_of(names: Any) -> dict[str, Any]:
    """For `typer.Option`: a list of names of a `Literal`, of which typer itself takes just one."""

    def parse(name: str) -> str:
        if name not in get_args(names):
            raise typer.BadParameter(f"{name!r} is not one of {', '.join(get_args(names))}.")
        return name

    return {"parser": parse, "metavar": f"[{'|'.join(get_args(names))}]"}


@app.command()
def info() -> None:
    """Print what was built, and which backend runs each stage here, and why not the others."""
    from koopcore.info import report

    typer.echo(report())


@app.command()
def demo(
    optimizer: Annotated[
        list[str],
        typer.Option(help="Ordinary training; repeat for several.", **_one_of(OptimizerName)),
    ] = ["adagrad"],  # noqa: B006
    partition: Annotated[
        list[str],
        typer.Option(help="What shares an operator; repeat for several.", **_one_of(PartitionName)),
    ] = ["network"],  # noqa: B006
    model: Annotated[ModelName, typer.Option(help="Operator; auto chooses by hindcast.")] = "auto",
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
    precision: Annotated[Precision, typer.Option(help="Of training and snapshots.")] = "float32",
    output: Annotated[
        Path, typer.Option(help="Picture to write: .png, .pdf or .svg.", metavar="PATH")
    ] = Path("koopcore-demo.png"),
) -> None:
    """Train oscillator networks, predict their weights, compare with training on (Dogra 2020)."""
    options = locals()
    from koopcore.lab.demo.command import run

    run(
        optimizers=tuple(dict.fromkeys(options.pop("optimizer"))),
        partitions=tuple(dict.fromkeys(options.pop("partition"))),
        **options,
    )


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
    ] = RESULTS,
) -> None:
    """Measure how cost grows, against memory, peers and training steps, on this machine."""
    from koopcore.lab.bench.run import run

    code = run(output=output, quick=quick, only=only, against=compare, tolerance=tolerance)
    raise typer.Exit(code)


Quick = Annotated[bool, typer.Option("--quick", help="A small version; how long, see above.")]
Output = Annotated[
    Path, typer.Option(help="Folder for results and pictures.", metavar="FOLDER", file_okay=False)
]
Fresh = Annotated[bool, typer.Option("--fresh", help="Compute again what was finished earlier.")]
Only = Annotated[
    str, typer.Option(help="Cells to compute, a pattern such as 'adam*'.", metavar="PATTERN")
]
Data = Annotated[
    Path | None,
    typer.Option(
        help="Folder with the four IDX files of MNIST, in place of the 10,000 digits carried.",
        metavar="FOLDER",
        exists=True,
        file_okay=False,
    ),
]
FirstSeed = Annotated[
    int | None, typer.Option(min=0, help="The first of these seeds.", show_default="1000")
]
Iterations = Annotated[
    int | None, typer.Option(min=1, help="Of each learner.", show_default="by size")
]


def _run(experiment: str, data: Path | None = None, **options: Any) -> None:
    from koopcore.lab.experiment import run

    if data is not None:
        options["data"] = str(data)
    run(experiment, **options)


def _plain(name: str) -> Callable[..., None]:
    """The command of an experiment without options of its own."""

    def command(
        quick: Quick = False, output: Output = RESULTS, fresh: Fresh = False, only: Only = "*"
    ) -> None:
        _run(name, quick=quick, output=output, fresh=fresh, only=only)

    return command


def _on_digits(name: str) -> Callable[..., None]:
    """The command of an experiment on MNIST."""

    def command(
        quick: Quick = False,
        output: Output = RESULTS,
        fresh: Fresh = False,
        only: Only = "*",
        data: Data = None,
    ) -> None:
        _run(name, data, quick=quick, output=output, fresh=fresh, only=only)

    return command


@reproduce.command()
def table1(
    schedule: Annotated[
        Schedule,
        typer.Option(help="A short strided window, or the paper's 10,000 snapshots at many rates."),
    ] = "short",
    quick: Quick = False,
    output: Output = RESULTS,
    fresh: Fresh = False,
    only: Only = "*",
) -> None:
    """Oscillator, 25 networks, three optimizers (Dogra & Redman 2020, Table 1).

    --quick: 25 s; with --schedule paper 35 s.
    """
    name = "table1" if schedule == "short" else "table1-paper"
    _run(name, quick=quick, output=output, fresh=fresh, only=only)


# Of --quick: processor seconds on a two-core server, to the next five.
for _made, _name, _help in (
    (
        _on_digits,
        "table2",
        "MNIST, 10 seeds, minibatch Adadelta (Dogra & Redman 2020, Table 2). --quick: 10 s.",
    ),
    (
        _plain,
        "figure2",
        "Oscillator: loss and weights, predicted (Dogra & Redman 2020, Fig. 2). --quick: 10 s.",
    ),
    (
        _on_digits,
        "figure3",
        "MNIST: validation loss, predicted (Dogra & Redman 2020, Fig. 3). --quick: 10 s.",
    ),
    (
        _plain,
        "end-to-end",
        "Oscillator: steps and seconds to a loss, against tuned training. --quick: 75 s.",
    ),
    (
        _plain,
        "end-to-end-small",
        "Small full batches: steps, cost and seconds to a loss. --quick: 110 s.",
    ),
    (
        _on_digits,
        "end-to-end-mnist",
        "MNIST: steps and seconds to a validation loss. --quick: about two minutes.",
    ),
):
    reproduce.command(_name, help=_help)(_made(_name))


@reproduce.command()
def van_der_pol(
    seeds: Annotated[
        int | None, typer.Option(min=1, help="Random dictionaries per row.", show_default="by size")
    ] = None,
    n_iterations: Iterations = None,
    quick: Quick = False,
    output: Output = RESULTS,
    fresh: Fresh = False,
    only: Only = "*",
) -> None:
    """Van der Pol, learned and predicted (Liu, Ding, Chen, Yeung 2020, Fig. 1). --quick: 10 s."""
    _run("van-der-pol", **locals())


@reproduce.command()
def dictionaries(
    seeds: Annotated[
        int | None, typer.Option(min=1, help="Of data and dictionaries.", show_default="by size")
    ] = None,
    seed: FirstSeed = None,
    quick: Quick = False,
    output: Output = RESULTS,
    fresh: Fresh = False,
    only: Only = "*",
) -> None:
    """Learned, random, EDMD's and delayed dictionaries of one size, on held-out starts.

    --quick: 20 s.
    """
    _run("dictionaries", **locals())


@reproduce.command()
def glycolysis(
    workers: Annotated[
        int | None, typer.Option(min=1, max=7, help="Processes.", show_default="1")
    ] = None,
    n_iterations: Iterations = None,
    seeds: Annotated[
        int | None, typer.Option(min=1, help="Random first weights, in turn.", show_default="1")
    ] = None,
    seed: FirstSeed = None,
    quick: Quick = False,
    output: Output = RESULTS,
    fresh: Fresh = False,
    only: Only = "*",
) -> None:
    """Glycolysis, learned and predicted (Liu, Ding, Chen, Yeung 2020, Fig. 2). --quick: 10 s."""
    _run("glycolysis", **locals())

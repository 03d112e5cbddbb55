"""``koopcore reproduce van-der-pol`` and ``glycolysis``, to be added to the reproduce commands."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

INTERRUPTED = 130  # 128 + SIGINT, as shells report it

Output = Annotated[Path, typer.Option(help="Folder for results and pictures.", file_okay=False)]


def add_learning_commands(app: typer.Typer) -> None:
    """Add both commands; each imports its experiment only when it is run."""

    @app.command("van-der-pol", help="Van der Pol (Liu, Ding, Chen, Yeung 2020, Fig. 1).")
    def van_der_pol(
        seeds: Annotated[int, typer.Option(min=1, help="Random dictionaries per row.")] = 10,
        n_iterations: Annotated[int, typer.Option(min=1, help="Per dictionary.")] = 500,
        output: Output = Path("koopcore-results"),
    ) -> None:
        _run("van_der_pol", "van_der_pol", output, seeds=seeds, n_iterations=n_iterations)

    @app.command("glycolysis", help="Glycolysis (Liu, Ding, Chen, Yeung 2020, Fig. 2).")
    def glycolysis(
        workers: Annotated[int, typer.Option(min=1, max=7, help="Processes.")] = 1,
        n_iterations: Annotated[int, typer.Option(min=1, help="Gradient steps.")] = 10_000,
        seeds: Annotated[int, typer.Option(min=1, help="Random first weights, in turn.")] = 1,
        seed: Annotated[int, typer.Option(min=0, help="The first of these seeds.")] = 1000,
        output: Output = Path("koopcore-results"),
    ) -> None:
        _run(
            "glycolysis",
            "glycolysis",
            output,
            workers=workers,
            n_iterations=n_iterations,
            seeds=range(seed, seed + seeds),
        )


def _run(module: str, name: str, output: Path, **options: Any) -> None:
    """Run an experiment; what a user can cause is one line and an exit code, no traceback."""
    try:
        from koopcore.learning import WorkerError

        found = import_module(f"koopcore.lab.experiments.{module}")
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing in {"", "koopcore"}:
            raise
        _fail(f'{missing} is not installed: pip install "koopcore[demo]"')
    else:
        experiment: Callable[..., object] = getattr(found, name)
        try:
            output.mkdir(parents=True, exist_ok=True)  # before minutes of work
            experiment(output, **options)
        except (ValueError, OSError, WorkerError) as error:
            _fail(str(error))
        except KeyboardInterrupt:
            _fail("interrupted; nothing was written", INTERRUPTED)


def _fail(message: str, code: int = 2) -> None:
    typer.echo(f"koopcore: {message}", err=True)
    raise typer.Exit(code)

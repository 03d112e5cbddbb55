"""``koopcore reproduce van-der-pol`` and ``glycolysis``, to be added to the reproduce commands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Output = Annotated[Path, typer.Option(help="Folder for results and pictures.", file_okay=False)]


def add_learning_commands(app: typer.Typer) -> None:
    """Add both commands; each imports its experiment only when it is run."""

    @app.command("van-der-pol", help="Van der Pol (Liu, Ding, Chen, Yeung 2020, Fig. 1).")
    def van_der_pol(
        seeds: Annotated[int, typer.Option(min=1, help="Random dictionaries per row.")] = 10,
        n_iterations: Annotated[int, typer.Option(min=1, help="Per dictionary.")] = 500,
        output: Output = Path("koopcore-results"),
    ) -> None:
        from koopcore.problems import reproduce_learning

        reproduce_learning.van_der_pol(output, seeds=seeds, n_iterations=n_iterations)

    @app.command("glycolysis", help="Glycolysis (Liu, Ding, Chen, Yeung 2020, Fig. 2).")
    def glycolysis(
        workers: Annotated[int, typer.Option(min=1, max=7, help="Processes.")] = 1,
        n_iterations: Annotated[int, typer.Option(min=1, help="Gradient steps.")] = 10_000,
        seed: Annotated[int, typer.Option(min=0, help="Of the first weights.")] = 0,
        output: Output = Path("koopcore-results"),
    ) -> None:
        from koopcore.problems import reproduce_learning

        reproduce_learning.glycolysis(
            output, workers=workers, n_iterations=n_iterations, seeds=(seed,)
        )

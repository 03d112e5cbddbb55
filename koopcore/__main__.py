"""The ``koopcore`` command, also as ``python -m koopcore``, where even typer may be missing."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line of `koopcore.cli`, which needs the packages of the extra ``demo``.

    ``koopcore info`` works without them.
    """
    try:
        from koopcore import cli
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in {"typer", "rich"}:
            raise
        if sys.argv[1:] == ["info"]:  # what helps to find out why something is missing
            from koopcore.info import report

            print(report())
            return
        print(
            f"koopcore: the command line needs {error.name}, which is not installed: "
            'pip install "koopcore[demo]"',
            file=sys.stderr,
        )
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    cli.main()


if __name__ == "__main__":
    main()

"""The ``koopcore`` command, also as ``python -m koopcore``: says how to install what it needs."""

from __future__ import annotations

import sys

_INTERRUPTED = 130  # 128 + SIGINT, as shells report it


def main() -> None:
    """Run the command line of koopcore.cli, which needs the packages of the extra ``demo``."""
    try:
        from koopcore.cli import main as cli_main
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in {"typer", "rich"}:
            raise
        sys.exit(
            f"the koopcore command needs {error.name}, which is not installed: "
            'pip install "koopcore[demo]"'
        )
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)
    try:
        cli_main()
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)


if __name__ == "__main__":
    main()

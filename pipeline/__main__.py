"""Entry point of `python -m pipeline` and of the console script `sa3-trainer`. Light: standard library only."""

from __future__ import annotations

import signal


def main() -> None:
    """Run the command line."""
    from pipeline.cli import app

    try:
        app()
    finally:
        # From here on only exit handlers of libraries run, and a Ctrl-C in one of them would print a traceback.
        signal.signal(signal.SIGINT, signal.SIG_IGN)


if __name__ == "__main__":
    main()

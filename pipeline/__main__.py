"""`python -m pipeline` and the console script `sa3-trainer`."""

from __future__ import annotations

import signal


def main() -> None:
    """Run the command line."""
    from pipeline.cli import app

    try:
        app()
    finally:
        # Nothing is left to stop: libraries that tidy up at the end would answer a further Ctrl-C with a traceback.
        signal.signal(signal.SIGINT, signal.SIG_IGN)


if __name__ == "__main__":
    main()

"""Entry point of `python -m pipeline` and of the console script `sa3-trainer`. Light: standard library only."""

from __future__ import annotations

from pipeline.early_stop import STOPPED_EARLY, leave_at_once


def main() -> None:
    """Run the command line."""
    leave_at_once()  # nothing has begun while modules are imported: a Ctrl-C has nothing to save or to explain
    import signal
    import warnings

    from pipeline.streams import install_streams

    install_streams()
    # joblib's word on a system without semaphores: workers.py does what it says, and it costs no result.
    warnings.filterwarnings("ignore", message=r".*joblib will operate in serial mode")
    try:
        _run_command()
    except KeyboardInterrupt:
        raise SystemExit(STOPPED_EARLY) from None
    finally:
        # From here on only exit handlers of libraries run, and a Ctrl-C in one of them would print a traceback.
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _run_command() -> None:
    """Run the command; a result that stdout could not take is an error, unless nobody reads it any more."""
    import sys

    from pipeline.cli import app
    from pipeline.streams import lost_output

    try:
        app()
    except SystemExit as end:
        if (error := lost_output()) is None or end.code:
            raise
        print(f"error: stdout could not be written ({error.strerror}); the work itself is done", file=sys.stderr)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()

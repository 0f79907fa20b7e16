"""Entry point of the console script `sa3-trainer`. Light: standard library only.

It is here, and not in `pipeline`, because other packages have folders called `pipeline` and `stages`, too: where one of
them is found in place of ours, this module still is, and says so.
"""

from __future__ import annotations


def main() -> None:
    """Run the command line; an installation that cannot work is explained instead of traced."""
    try:
        _run()
    except (ImportError, AttributeError, OSError) as error:
        _explain(error)


def _run() -> None:
    from pipeline.early_stop import leave_at_once

    leave_at_once()
    from sa3_trainer.installation import again, explanation, hidden_packages, lost_packages

    if hidden_packages() or lost_packages():
        raise ImportError("modules of ours cannot be imported")
    from pipeline import cli_errors
    from pipeline.__main__ import main as run

    cli_errors.explain_import, cli_errors.mend_installation = explanation, again
    run()


def _explain(error: BaseException) -> None:
    """Print what is wrong and exit with 1; raise the error again where it has nothing to do with the installation."""
    import json
    import sys

    from sa3_trainer.installation import explanation

    said = explanation(error)
    if said is None:
        raise error
    print(f"error: {said}", file=sys.stderr)
    if "--json" in sys.argv:
        detail = [{"loc": ["body"], "type": "InstallationBroken", "msg": said}]
        print(json.dumps({"version": 1, "detail": detail, "message": said}))
    raise SystemExit(1) from None

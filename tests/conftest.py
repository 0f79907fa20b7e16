"""What holds for every test."""

from __future__ import annotations

import os
import signal

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell's background job begins with Ctrl-C ignored, and so would the commands that the tests start.
    signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

# The settings of whoever runs the tests have no place in them.
os.environ["SA3_CONFIG"] = os.devnull
os.environ.pop("SA3_STORE", None)

collect_ignore_glob = ["test_serve_*.py", "serve_conformance/*"] if os.name == "nt" else []
"""What needs Linux or macOS."""

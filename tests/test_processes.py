"""Signals of worker processes, and temporary environment variables."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from stages.processes import sigint_blocked, temporary_environment


def test_variables_have_their_values_inside_and_those_from_before_outside(monkeypatch):
    monkeypatch.setenv("SA3_KNOWN", "before")
    monkeypatch.delenv("SA3_NEW", raising=False)
    with pytest.raises(KeyError), temporary_environment({"SA3_KNOWN": "inside", "SA3_NEW": "inside"}):
        assert (os.environ["SA3_KNOWN"], os.environ["SA3_NEW"]) == ("inside", "inside")
        raise KeyError
    assert os.environ["SA3_KNOWN"] == "before"
    assert "SA3_NEW" not in os.environ


def test_a_variable_that_the_library_took_away_itself_is_no_error(monkeypatch):
    monkeypatch.delenv("SA3_NEW", raising=False)
    with temporary_environment({"SA3_NEW": "inside"}):
        del os.environ["SA3_NEW"]
    assert "SA3_NEW" not in os.environ


def test_ctrl_c_cannot_end_a_process_that_has_not_been_initialised():
    script = (
        "import os; print(1, flush=True); input()\n"
        "from stages.processes import init_worker; init_worker(os.getppid()); print(2, flush=True)"
    )
    with sigint_blocked():
        process = subprocess.Popen([sys.executable, "-c", script], stdin=-1, stdout=-1, text=True)
    assert process.stdout is not None and process.stdout.readline() == "1\n"
    os.kill(process.pid, signal.SIGINT)
    assert process.communicate("go on\n", timeout=60)[0] == "2\n"
    assert process.returncode == 0


def test_ctrl_c_while_processes_start_reaches_the_parent():
    with pytest.raises(KeyboardInterrupt), sigint_blocked():
        os.kill(os.getpid(), signal.SIGINT)  # another thread may take it at once, this one does afterwards
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, set()) & {signal.SIGINT}


def test_ctrl_c_while_a_finished_command_tidies_up_prints_no_traceback(tmp_path):
    script = (
        "import atexit, os, signal, sys, time\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell may have it ignored in the background
        "atexit.register(lambda: (os.kill(os.getpid(), signal.SIGINT), time.sleep(0.1)))\n"
        "from pipeline.__main__ import main; main()"
    )
    command = [sys.executable, "-c", script, "verify", "--store", str(tmp_path / "none")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stderr.startswith("error: there is no folder")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)

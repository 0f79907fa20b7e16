"""Which signals stop a run at its next safe point, and how Ctrl-C ends a command that has not begun."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.cli_errors import reported_errors
from pipeline.early_stop import leave_at_once, raise_from_now_on
from pipeline.execution.stop_signals import STOP_SIGNALS, stop_signals
from stages.errors import Stopped

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(os.name != "posix", reason="sends POSIX signals")


@pytest.fixture(autouse=True)
def handlers_restored() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_stop_signal_sets_the_flag_and_ends_nothing(number):
    with stop_signals() as stop:
        os.kill(os.getpid(), number)
        assert stop.is_set()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_that_was_inherited_as_ignored_stays_ignored(number):
    signal.signal(number, signal.SIG_IGN)
    with stop_signals() as stop:
        os.kill(os.getpid(), number)
        assert not stop.is_set()


def test_before_a_command_begins_an_ignored_ctrl_c_stays_ignored():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    leave_at_once()
    raise_from_now_on()
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_once_a_command_has_begun_ctrl_c_raises_again():
    signal.signal(signal.SIGINT, signal.default_int_handler)
    leave_at_once()
    raise_from_now_on()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_stop_is_no_error_and_its_exit_code_names_the_signal(number, code, capsys):
    with pytest.raises(SystemExit) as ended, reported_errors(), stop_signals():
        os.kill(os.getpid(), number)
        raise Stopped("at step 3 of 5")
    assert ended.value.code == code
    assert capsys.readouterr().err.splitlines()[-1].startswith("stopped at step 3 of 5; run the same command again")


def test_a_second_ctrl_c_ends_with_130_too():
    with pytest.raises(SystemExit) as ended, reported_errors(), stop_signals():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
    assert ended.value.code == 130


INTERRUPTED_IMPORT = """
import os, signal, sys
class Interrupt:
    def find_spec(self, name, *rest):
        if name == "typer":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupt())
from pipeline.__main__ import main
main()
"""


def test_ctrl_c_while_modules_are_imported_ends_in_one_line():
    ended = subprocess.run([sys.executable, "-c", INTERRUPTED_IMPORT], cwd=ROOT, capture_output=True)
    assert (ended.returncode, ended.stderr.split(b"\n")) == (130, [b"", b"stopped before anything began", b""])

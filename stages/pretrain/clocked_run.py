"""A training that ends by the clock, so that it fits a call of limited length. Light: standard library only."""

from __future__ import annotations

import argparse
import time
from abc import ABC, abstractmethod

SECONDS_BETWEEN_REPORTS = 15.0


class ClockedRun(ABC):
    """Steps until `--seconds` or `--most-steps` are used up, reported and saved on the way."""

    options: argparse.Namespace
    num_steps: int
    seconds_between_checkpoints = 60.0

    def train(self) -> None:
        """Steps until the time or the number of steps is used up."""
        began, first = time.monotonic(), self.num_steps
        report_at, save_at = SECONDS_BETWEEN_REPORTS, self.seconds_between_checkpoints
        while (elapsed := time.monotonic() - began) < self.options.seconds:
            done = self.num_steps - first
            if self.options.most_steps and done >= self.options.most_steps:
                break
            self.one_step(elapsed, done)
            if elapsed > report_at:
                report_at += SECONDS_BETWEEN_REPORTS
                self.report(elapsed, done)
            if elapsed > save_at:
                save_at += self.seconds_between_checkpoints
                self.save()
        self.report(time.monotonic() - began, self.num_steps - first)

    def share(self, elapsed: float, done: int) -> float:
        """Share of the run that is done: of the steps where their number is given, else of the seconds."""
        most = self.options.most_steps
        return float(done / most if most else elapsed / self.options.seconds)

    @abstractmethod
    def one_step(self, elapsed: float, done: int) -> None:
        """Make a step after so many seconds and steps, and count it in `num_steps`."""

    @abstractmethod
    def report(self, elapsed: float, done: int) -> None:
        """Print and keep the terms of the loss."""

    @abstractmethod
    def save(self) -> None:
        """Write what a later call goes on from."""

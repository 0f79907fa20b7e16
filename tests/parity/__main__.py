"""Run every recorded case and print a table: `GOLDEN_DIR=folder python -m tests.parity [--only REGEX] [--tensors]`.

Exits 1 when any case fails or is known to no checker, 2 when there is nothing to run.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from pathlib import Path

from tests.parity.frame import Comparison, Verdict, families, judge, load_checkers

_COMPACT = Path(__file__).parent.parent / "golden"
_HEAD = ("family", "case", "tensors", "worst error", "tolerance", "level", "seconds", "result")
_WIDTHS = (10, 32, 7, 11, 9, 6, 7, 6)


def main() -> int:
    """Run all cases and print a table; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.parity", description="golden parity of every recorded case")
    parser.add_argument("--only", default="", help="regular expression a case name must contain")
    parser.add_argument("--tensors", action="store_true", help="one line per compared tensor as well")
    options = parser.parse_args()
    root = Path(os.environ.get("GOLDEN_DIR", _COMPACT))
    if not root.is_dir():
        print(f"no golden folder at {root}; set GOLDEN_DIR to one", file=sys.stderr)
        return 2
    broken = load_checkers()
    for module, trouble in broken.items():
        print(f"tests/parity/{module}.py cannot be imported:\n{trouble}", file=sys.stderr)
    verdicts = _run(root, re.compile(options.only), options.tensors)
    _summary(verdicts)
    if not verdicts:
        return 2
    return 0 if not broken and all(verdict.passed for verdict in verdicts) else 1


def _run(root: Path, only: re.Pattern[str], tensors: bool) -> list[Verdict]:
    print(_row(_HEAD))
    verdicts = []
    for family in families(root):
        for name in filter(only.search, family.case_names):
            start = time.perf_counter()
            verdict = judge(family, name)
            print(_line(verdict, time.perf_counter() - start), flush=True)
            if tensors:
                print("\n".join(_tensor_line(one) for one in verdict.comparisons))
            verdicts.append(verdict)
    return verdicts


def _row(cells: tuple[str, ...]) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(cells, _WIDTHS, strict=True)).rstrip()


def _line(verdict: Verdict, seconds: float) -> str:
    worst = verdict.worst
    levels = {one.level for one in verdict.comparisons}
    level = next((level for level in ("loose", "strict", "exact", "info") if level in levels), "-")
    result = "pass" if verdict.passed else ("FAIL" if "no checker" not in verdict.trouble else "UNKNOWN")
    figures = (f"{worst.worst_error:.2g}", f"{worst.tolerance:.2g}") if worst else ("-", "-")
    count = str(len(verdict.comparisons))
    return _row((verdict.family, verdict.case, count, *figures, level, f"{seconds:.2f}", result))


def _tensor_line(one: Comparison) -> str:
    mark = "ok" if one.passed else "FAIL"
    return f"    {mark:<4}  {one.level:<6}  {one.worst_error:<9.2g}  {one.tolerance:<9.2g}  {one.tensor}  {one.note}"


def _summary(verdicts: list[Verdict]) -> None:
    failed = [verdict for verdict in verdicts if not verdict.passed]
    loose = [(verdict, one) for verdict in verdicts for one in verdict.comparisons if one.level == "loose"]
    for verdict, one in loose:
        print(f"loose: {verdict.family} {verdict.case} {one.tensor}: {one.worst_error:.2g} of {one.tolerance:.2g}")
    for verdict in failed:
        if "no checker" not in verdict.trouble:
            print(f"\n{verdict.family} {verdict.case} failed:\n{verdict.failures()}")
    unknown = sum("no checker" in verdict.trouble for verdict in failed)
    counts = f"{len(verdicts) - len(failed)} passed, {len(failed) - unknown} failed, {unknown} unknown"
    print(f"\n{counts}; {len(loose)} tensors by the loose tolerance")


if __name__ == "__main__":
    sys.exit(main())

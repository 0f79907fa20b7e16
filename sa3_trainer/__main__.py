"""Entry point of `python -m sa3_trainer`. Light: standard library only."""

from __future__ import annotations

from sa3_trainer.command import main

if __name__ == "__main__":
    main()

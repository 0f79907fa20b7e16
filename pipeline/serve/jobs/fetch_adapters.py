"""Puts the adapters of a generation into its folder, downloading those that are addresses.

`python -m pipeline.serve.jobs.fetch_adapters FOLDER STORE`; errors are printed as those of the command line. Light:
standard library only.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from pipeline.cli_errors import reported_errors
from pipeline.request.download import Download, Downloader
from pipeline.request.paths import is_url
from pipeline.serve.jobs.commands import adapter_file
from pipeline.serve.jobs.job_folder import JobFolder
from stages.adapters.adapter_header import NotAnAdapterFile, read_adapter_header

_MAX_BYTES = 4 * 2**30


def fetch(folder: JobFolder, store: Path) -> None:
    """Fetch every adapter of the job. Raises: FetchFailed."""
    downloads = store / "serve" / "fetched"
    downloads.mkdir(parents=True, exist_ok=True)
    for number, adapter in enumerate(json.loads((folder.root / "adapters.json").read_bytes())):
        text = adapter["file"]
        found = Path(text)
        if is_url(text):
            wanted = Download(
                field="loras", url=text, suffix=".safetensors", max_bytes=_MAX_BYTES, fault=_adapter_fault
            )
            found = Downloader(download=wanted, folder=downloads, say=_say).run()
        shutil.copyfile(found, adapter_file(folder, number))


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _adapter_fault(file: Path) -> str | None:
    try:
        read_adapter_header(file)
    except NotAnAdapterFile as error:
        return f"is not an adapter that can be read: {error}"
    return None


def main() -> None:
    """Fetch the adapters of the folder given as argument."""
    with reported_errors("generate", as_json=True):
        fetch(JobFolder(Path(sys.argv[1])), Path(sys.argv[2]))


if __name__ == "__main__":
    main()

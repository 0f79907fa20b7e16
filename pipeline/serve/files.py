"""Files of this server: uploads, whole or in parts, and the results of jobs. Light: standard library only."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import secrets
import shutil
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from pipeline.serve.errors import refusal
from pipeline.serve.jobs.queue import Database
from pipeline.serve.settings import Limits

_ID = re.compile(r"[0-9a-f]{32}|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_MOST_PARTS = 10_000
_COPY_BYTES = 1 << 20


class Files:
    """Uploads, each in a folder named by a random id."""

    def __init__(self, database: Database, state: Path, limits: Limits) -> None:
        self.database, self.limits = database, limits
        self.uploads, self.jobs = state / "uploads", state / "jobs"
        self.uploads.mkdir(parents=True, exist_ok=True)

    async def begin(self, owner: str, name: str, content_type: str) -> str:
        """The id of a new upload. Raises: Refused, where the owner or the disk has no room."""
        await self._check_room(owner, 0)
        id = secrets.token_hex(16)
        record = {"id": id, "owner": owner, "name": name, "content_type": content_type[:200], "num_bytes": 0}
        await self.database.run(self.database.add_upload, record | {"sha256": None, "created": time.time()})
        return id

    async def _check_room(self, owner: str, num_bytes: int) -> None:
        """Raise Refused where so many bytes more are not allowed."""
        used = await self.database.run(self.database.uploaded_bytes, owner)
        if used + num_bytes > self.limits.owner_bytes:
            raise refusal(403, f"the uploads of this key would exceed {self.limits.owner_bytes:,} bytes")
        if shutil.disk_usage(self.uploads).free - num_bytes < self.limits.reserved_disk_bytes:
            raise refusal(507, "the disk of this server has no room for the upload")

    async def receive(self, id: str, chunks: AsyncIterator[bytes], part: int | None, expected: int) -> str:
        """Write the bytes of an upload, or of one of its parts; their SHA-256.

        Args:
            part: its number, from 1; None for the whole file.
            expected: what the caller says how many bytes come; 0 where it does not.
        """
        record = await self._record(id)
        await self._check_room(record["owner"], max(expected, 0))
        if expected > self.limits.upload_bytes:
            raise self._too_large()
        if part is not None and not 1 <= part <= _MOST_PARTS:
            raise refusal(400, f"parts are numbered from 1 to {_MOST_PARTS}")
        target = self._path(record) if part is None else self._parts(id) / str(part)
        target.parent.mkdir(parents=True, exist_ok=True)
        incoming = target.with_name(f"{secrets.token_hex(4)}.incoming")
        try:
            num_bytes, digest = await self._written(incoming, chunks)
            await self._keep(record, incoming, target, num_bytes, digest, whole=part is None)
        finally:
            incoming.unlink(missing_ok=True)
        return digest

    async def _written(self, file: Path, chunks: AsyncIterator[bytes]) -> tuple[int, str]:
        digest, num_bytes = hashlib.sha256(), 0
        with file.open("xb") as stream:
            async for chunk in chunks:
                num_bytes += len(chunk)
                if num_bytes > self.limits.upload_bytes:
                    raise self._too_large()
                digest.update(chunk)
                stream.write(chunk)
            stream.flush()
            os.fsync(stream.fileno())
        return num_bytes, digest.hexdigest()

    async def _keep(
        self, record: dict[str, Any], incoming: Path, target: Path, num_bytes: int, digest: str, *, whole: bool
    ) -> None:
        """Give received bytes their place; what is whole is never replaced, but a repeated upload of it is fine."""
        if record["sha256"] is not None:
            if record["sha256"] != digest:
                raise refusal(400, "this upload is complete; begin another one")
            return
        await self._check_room(record["owner"], num_bytes)
        incoming.replace(target)
        if whole:
            await self.database.run(self.database.finish_upload, record["id"], num_bytes, digest)

    async def complete(self, id: str) -> None:
        """Join the parts of an upload, in the order of their numbers; the caller's list of them is not needed."""
        record = await self._record(id)
        if record["sha256"] is not None:
            return
        folder = self._parts(id)
        numbers = sorted(int(file.name) for file in folder.iterdir() if file.name.isdigit()) if folder.is_dir() else []
        if numbers != list(range(1, len(numbers) + 1)) or not numbers:
            missing = next(number for number in range(1, len(numbers) + 2) if number not in numbers)
            raise refusal(400, f"part {missing} of this upload is missing; send it, then complete again")
        if sum((folder / str(number)).stat().st_size for number in numbers) > self.limits.upload_bytes:
            raise self._too_large()
        num_bytes, digest = await asyncio.to_thread(_joined, folder, numbers, self._path(record))
        await self.database.run(self.database.finish_upload, id, num_bytes, digest)
        shutil.rmtree(folder, ignore_errors=True)

    async def store_data(self, owner: str, content: bytes) -> tuple[Path, str]:
        """Keep the bytes of a data: address as an upload named by their digest; path and digest."""
        digest = await asyncio.to_thread(lambda: hashlib.sha256(content).hexdigest())
        id = digest[:32]
        if (record := await self.database.run(self.database.upload, id)) is None:
            await self._check_room(owner, len(content))
            record = {"id": id, "owner": owner, "name": "data.zip", "content_type": "application/zip"}
            await self.database.run(
                self.database.add_upload, record | {"num_bytes": 0, "sha256": None, "created": time.time()}
            )
        if not self._path(record).is_file():
            await self.receive(id, _one(content), None, len(content))
        return self._path(record), digest

    async def found(self, id: str, name: str) -> tuple[Path, str, str | None] | None:
        """Path, content type and digest of a whole upload, or path of a job's file; None where there is none."""
        if not _ID.fullmatch(id):
            return None
        if "-" in id:
            folder = (self.jobs / id / "output").resolve()
            path = (folder / name).resolve()
            return (path, "", None) if path.parent == folder and path.is_file() else None
        record = await self.database.run(self.database.upload, id)
        if record is None or record["sha256"] is None or record["name"] != name:
            return None
        return self._path(record), record["content_type"], record["sha256"]

    async def _record(self, id: str) -> dict[str, Any]:
        record = await self.database.run(self.database.upload, id) if _ID.fullmatch(id) else None
        if record is None:
            raise refusal(404, "there is no such upload", "not_found")
        return record

    def remove(self, id: str) -> None:
        """Remove the bytes of an upload."""
        shutil.rmtree(self.uploads / id, ignore_errors=True)

    def _path(self, record: dict[str, Any]) -> Path:
        return self.uploads / str(record["id"]) / str(record["name"])

    def _parts(self, id: str) -> Path:
        return self.uploads / id / "parts.folder"

    def _too_large(self) -> Exception:
        return refusal(413, f"an upload may have {self.limits.upload_bytes:,} bytes")


async def _one(content: bytes) -> AsyncIterator[bytes]:
    yield content


def _joined(folder: Path, numbers: list[int], target: Path) -> tuple[int, str]:
    """Write the parts one after another; number of bytes and SHA-256."""
    incoming = target.with_name(f"{secrets.token_hex(4)}.incoming")
    digest, num_bytes = hashlib.sha256(), 0
    with incoming.open("wb") as stream:
        for number in numbers:
            with (folder / str(number)).open("rb") as part:
                while chunk := part.read(_COPY_BYTES):
                    digest.update(chunk)
                    num_bytes += len(chunk)
                    stream.write(chunk)
        stream.flush()
        os.fsync(stream.fileno())
    incoming.replace(target)
    return num_bytes, digest.hexdigest()

"""Routes of files: uploads of both clients, whole and in parts, and downloads with ranges.

Light: no arrays; starlette only.
"""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from typing import Any

from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from pipeline.serve.addresses import safe_name
from pipeline.serve.errors import refusal
from pipeline.serve.http.door import Door
from pipeline.serve.jobs.results import ANY_MEDIA_TYPE, media_type

_TOKEN_SECONDS = 3600
_SMALL_BODY_BYTES = 1 << 20


class FileRoutes:
    """Endpoints of uploads and downloads."""

    def __init__(self, door: Door) -> None:
        self.door = door

    def routes(self) -> list[Route]:
        """All of them; the most specific first."""
        file, upload = "/files/{signature}/{id}/{name}", "/upload/{signature}/{id}/{name}"
        return [
            Route("/storage/upload/initiate", self.initiate, methods=["POST"]),
            Route("/storage/upload/initiate-multipart", self.initiate, methods=["POST"]),
            Route("/storage/auth/token", self.token, methods=["POST"]),
            Route("/files/upload", self.upload_by_token, methods=["POST"]),
            Route("/files/upload/multipart", self.begin_by_token, methods=["POST"]),
            Route(f"{file}/multipart/{{upload_id}}/complete", self.complete_by_token, methods=["POST"]),
            Route(f"{file}/multipart/{{upload_id}}/{{part:int}}", self.part_by_token, methods=["PUT"]),
            Route(file, self.download, methods=["GET"]),
            Route(f"{upload}/complete", self.complete, methods=["POST"]),
            Route(f"{upload}/{{part:int}}", self.put, methods=["PUT"]),
            Route(upload, self.put, methods=["PUT"]),
        ]

    async def initiate(self, request: Request) -> Response:
        """Begin an upload: where its bytes go, and the address that the file will have."""
        body = await self._small_json(request)
        name = safe_name(str(body.get("file_name") or ""))
        id = await self.door.files.begin(request.state.owner, name, str(body.get("content_type") or ANY_MEDIA_TYPE))
        base, signer = self.door.base_url(request), self.door.signer
        answer = {"upload_url": base + signer.upload_path(id, name), "file_url": base + signer.file_path(id, name)}
        return JSONResponse(answer)

    async def _small_json(self, request: Request) -> dict[str, Any]:
        """A small JSON object. Raises: Refused."""
        raw = b""
        async for chunk in request.stream():
            raw += chunk
            if len(raw) > _SMALL_BODY_BYTES:
                raise refusal(413, f"this body may have {_SMALL_BODY_BYTES:,} bytes")
        try:
            body = json.loads(raw or b"{}")
        except (ValueError, RecursionError):
            body = None
        if not isinstance(body, dict):
            raise refusal(400, "the body must be a JSON object")
        return body

    async def put(self, request: Request) -> Response:
        """Take the bytes of an upload, or of a part of it; the path's signature stands for a key."""
        id = self._signed(request, "upload")
        return await self._received(request, id)

    async def complete(self, request: Request) -> Response:
        """Join the parts of an upload."""
        await self.door.files.complete(self._signed(request, "upload"))
        return JSONResponse({})

    def _signed(self, request: Request, purpose: str) -> str:
        """The id in a signed path. Raises: Refused, where the signature is not this server's."""
        names = ("signature", "id", "name")
        signature, id, name = (request.path_params[part] for part in names)
        if not self.door.signer.is_signed(signature, purpose, id, name):
            raise refusal(403, "the signature in this address is wrong", "unauthorized")
        return str(id)

    async def _received(self, request: Request, id: str) -> Response:
        part = request.path_params.get("part")
        length = request.headers.get("content-length", "")
        expected = int(length) if length.isdigit() else 0
        digest = await self.door.files.receive(id, request.stream(), part, expected)
        return JSONResponse({"partNumber": part, "etag": f'"{digest}"'}, headers={"etag": f'"{digest}"'})

    async def token(self, request: Request) -> Response:
        """A token with which the Python client uploads."""
        expires = int(time.time()) + _TOKEN_SECONDS
        answer = {
            "token": self.door.signer.token(request.state.owner, expires),
            "token_type": "Bearer",
            "base_url": self.door.base_url(request),
            "expires_at": datetime.fromtimestamp(expires, UTC).isoformat(),
        }
        return JSONResponse(answer)

    def _uploader(self, request: Request) -> str:
        """Who uploads by token. Raises: Refused without one."""
        if not request.state.owner:
            raise refusal(401, "a token is needed; /storage/auth/token gives one", "unauthorized")
        return str(request.state.owner)

    async def _begun(self, request: Request) -> tuple[str, str]:
        """A new upload by token: id and name."""
        name = safe_name(request.headers.get("x-fal-file-name", ""))
        content_type = request.headers.get("content-type", ANY_MEDIA_TYPE)
        return await self.door.files.begin(self._uploader(request), name, content_type), name

    async def upload_by_token(self, request: Request) -> Response:
        """Take a whole file."""
        id, name = await self._begun(request)
        await self._received(request, id)
        return JSONResponse({"access_url": self.door.base_url(request) + self.door.signer.file_path(id, name)})

    async def begin_by_token(self, request: Request) -> Response:
        """Begin a file in parts."""
        id, name = await self._begun(request)
        address = self.door.base_url(request) + self.door.signer.file_path(id, name)
        return JSONResponse({"access_url": address, "uploadId": id})

    async def part_by_token(self, request: Request) -> Response:
        """Take a part."""
        self._uploader(request)
        return await self._received(request, self._signed(request, "file"))

    async def complete_by_token(self, request: Request) -> Response:
        """Join the parts."""
        self._uploader(request)
        await self.door.files.complete(self._signed(request, "file"))
        return JSONResponse({})

    async def download(self, request: Request) -> Response:
        """A file, or the range of it that is asked for; never as a page of this origin."""
        id = self._signed(request, "file")
        found = await self.door.files.found(id, request.path_params["name"])
        if found is None:
            raise refusal(404, "there is no such file, or not all of it yet", "not_found")
        path, _, _ = found
        kind = media_type(path.name)
        headers = {"content-security-policy": "sandbox; default-src 'none'", "cache-control": "private, max-age=3600"}
        disposition = "inline" if kind.startswith("audio/") else "attachment"
        return FileResponse(
            path, media_type=kind, headers=headers, filename=path.name, content_disposition_type=disposition
        )

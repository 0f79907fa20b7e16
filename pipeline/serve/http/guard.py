"""What every request passes first: whose it is, whether it may come from there, and how large and slow it may be.

Light: no arrays; starlette only.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import Counter
from collections.abc import MutableMapping
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeline.serve.addresses import Signer
from pipeline.serve.errors import Refused, refusal
from pipeline.serve.settings import LOCAL_OWNER, Settings, is_loopback

PROXY_PATH = "/api/fal/proxy"
_OPEN_PATHS = {
    "/",
    "/health",
    "/openapi.json",
    "/.well-known/jwks.json",
    "/errors",
    "/page.js",
    "/page-zip.js",
    "/page.css",
}
"""Answered without a key: they hold nothing of anybody's."""
_SIGNED_PREFIXES = ("/files/", "/upload/")
"""Their paths carry a signature, or a token is checked there."""
_ALLOWED_HEADERS = (
    "authorization, content-type, accept, x-fal-target-url, x-fal-queue-priority, x-fal-request-timeout, "
    "x-fal-request-timeout-type, x-fal-runner-hint, x-fal-object-lifecycle, x-fal-object-lifecycle-preference, "
    "x-fal-no-retry, x-fal-file-name, range"
)


class Guard:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp, settings: Settings, signer: Signer, counts: Counter[int]) -> None:
        """`counts`: answers by status, for /metrics."""
        self.app, self.settings, self.signer, self.counts = app, settings, signer, counts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on with its owner in `scope["state"]`, or answer it with a refusal."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = Headers(scope=scope)
        state = scope.setdefault("state", {})
        state["request_id"] = str(uuid.uuid4())
        answered = self._with_headers(send, headers.get("origin"), state)
        try:
            self._check_place(headers)
            if scope["method"] == "OPTIONS":
                return await Response(status_code=204)(scope, receive, answered)
            scope = self._proxied(scope, headers)
            state["owner"] = self._owner(scope["path"], headers)
            await self.app(scope, self._limited(receive), answered)
        except Refused as refused:
            response = JSONResponse(refused.body, refused.status, refused.headers | {"connection": "close"})
            await response(scope, receive, answered)

    def _check_place(self, headers: Headers) -> None:
        """Refuse names that are not this server's (DNS rebinding) and scripts of foreign pages. Raises: Refused."""
        host = headers.get("host", "")
        if not self.settings.keys and not self._is_own_name(host):
            raise refusal(403, "this server answers under the names of this machine only; start it with --public-url")
        origin = headers.get("origin")
        if origin is not None and not self._is_allowed(origin, host):
            raise refusal(403, "pages of this origin may not call this server; start it with --allow-origin ORIGIN")

    def _is_own_name(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        public = urlsplit(self.settings.public_url or "").hostname
        return is_loopback(name) or name == public

    def _is_allowed(self, origin: str, host: str) -> bool:
        """Whether scripts of an origin may call: pages of this server, of this machine, and those asked for."""
        if origin in self.settings.origins or "*" in self.settings.origins:
            return True
        try:
            parts = urlsplit(origin)
            public = self.settings.public_url and urlsplit(self.settings.public_url)
            return (
                parts.netloc == host
                or (bool(public) and parts[:2] == public[:2])  # type: ignore[index]
                or (parts.scheme in ("http", "https") and is_loopback(parts.hostname or ""))
            )
        except ValueError:
            return False

    def _proxied(self, scope: Scope, headers: Headers) -> Scope:
        """The request that a proxied one stands for: path and query of x-fal-target-url, on this server."""
        target = headers.get("x-fal-target-url")
        if scope["path"] != PROXY_PATH:
            return scope
        if target is None:
            raise refusal(400, "x-fal-target-url is missing: it names the address that is asked for")
        try:
            parts = urlsplit(target)
        except ValueError:
            raise refusal(400, "x-fal-target-url is no valid address") from None
        prefix = "/run" if parts.hostname == "fal.run" else ""
        path = prefix + (parts.path or "/")
        return {**scope, "path": path, "raw_path": path.encode(), "query_string": parts.query.encode()}

    def _owner(self, path: str, headers: Headers) -> str:
        """Whose request it is. Raises: Refused without a right key, where one is needed."""
        if not self.settings.keys:
            return LOCAL_OWNER
        kind, _, given = headers.get("authorization", "").partition(" ")
        given = given.strip()
        owner = None
        if kind.lower() in ("key", "bearer"):
            owner = self.settings.owner_of(given) or self._owner_by_token(path, given)
        if owner is None and path not in _OPEN_PATHS and not path.startswith(_SIGNED_PREFIXES):
            raise refusal(401, "a key is needed: send the header Authorization: Key KEY", "unauthorized")
        return owner or ""

    def _owner_by_token(self, path: str, token: str) -> str | None:
        """Tokens are for uploads only."""
        return self.signer.owner_of_token(token, time.time()) if path.startswith("/files/") else None

    def _limited(self, receive: Receive) -> Receive:
        """`receive` that ends bodies which pause too long, or come slower than a modem."""
        started, received, silence = time.monotonic(), 0, self.settings.limits.silence_seconds

        async def limited() -> Message:
            nonlocal received
            if received < 0:  # whole: what comes now is the end of the connection, whenever it ends
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), silence)
            except TimeoutError:
                raise refusal(400, f"nothing of the request's body came for {silence:g} s") from None
            if message["type"] == "http.request":
                received += len(message.get("body", b""))
                patience = silence + received / _SLOWEST_BYTES_PER_SECOND
                if time.monotonic() - started > patience:
                    raise refusal(400, "the request's body comes too slowly")
                if not message.get("more_body"):
                    received = -1
            return message

        return limited

    def _with_headers(self, send: Send, origin: str | None, state: MutableMapping[str, Any]) -> Send:
        """`send` that adds the request's id, and what browsers need to let a page see the answer."""

        async def answered(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.counts[message["status"]] += 1
                headers = MutableHeaders(scope=message)
                headers.setdefault("x-fal-request-id", state["request_id"])
                headers.setdefault("x-content-type-options", "nosniff")
                if origin is not None and message["status"] != 403:
                    headers.update(_cors(origin))
            await send(message)

        return answered


_SLOWEST_BYTES_PER_SECOND = 2048


def _cors(origin: str) -> dict[str, str]:
    return {
        "access-control-allow-origin": origin,
        "access-control-allow-headers": _ALLOWED_HEADERS,
        "access-control-allow-methods": "GET, POST, PUT, OPTIONS",
        "access-control-expose-headers": "x-fal-request-id, x-fal-error-type, etag, content-range",
        "access-control-max-age": "600",
        "access-control-allow-private-network": "true",
        "vary": "origin",
    }

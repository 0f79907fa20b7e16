"""Tells callers that their jobs ended: signed POST requests to public addresses, repeated until one is taken.

The signature is the hosted queue's: ED25519 over request id, user id, time and the digest of the body, a line each; the
public key is at /.well-known/jwks.json. Light: standard library only; cryptography is imported on use.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import time
import urllib.error
import urllib.request
from typing import Any
from urllib.parse import urlsplit

from pipeline.request.opener import PublicHTTPHandler, PublicHTTPSHandler
from pipeline.serve.jobs.job import Job
from pipeline.serve.jobs.queue import Database

PENDING, SENT, GIVEN_UP = "pending", "sent", "failed"
_TIMEOUT_SECONDS = 15.0
_PAUSES_SECONDS = (1.0, 5.0, 30.0, 120.0, 600.0, 1800.0, 3600.0)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A webhook goes to the address that was given, and to no other."""

    def redirect_request(self, *_: Any) -> None:
        return None


def payload(job: Job) -> dict[str, Any]:
    """The body of a job's webhook."""
    is_ok = job.error is None
    return {
        "request_id": job.id,
        "gateway_request_id": job.id,
        "status": "OK" if is_ok else "ERROR",
        "payload": job.result,
        "error": job.error,
    }


def signed_headers(secret: bytes, job: Job, body: bytes, now: int) -> dict[str, str]:
    """Headers by which a receiver knows that this server sent the body."""
    message = "\n".join([job.id, job.owner, str(now), hashlib.sha256(body).hexdigest()]).encode()
    return {
        "content-type": "application/json",
        "user-agent": "sa3-trainer",
        "x-fal-webhook-request-id": job.id,
        "x-fal-webhook-user-id": job.owner,
        "x-fal-webhook-timestamp": str(now),
        "x-fal-webhook-signature": _private_key(secret).sign(message).hex(),
    }


def _private_key(secret: bytes) -> Any:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    return Ed25519PrivateKey.from_private_bytes(secret)


def public_keys(secret: bytes) -> dict[str, Any]:
    """The public key as a JSON Web Key Set."""
    raw = _private_key(secret).public_key().public_bytes_raw()
    key = {"kty": "OKP", "crv": "Ed25519", "x": base64.urlsafe_b64encode(raw).rstrip(b"=").decode()}
    return {"keys": [key]}


def wrong_address(url: str) -> str | None:
    """Why an address cannot be a webhook's, or None; whether it is public is seen when it is connected to."""
    try:
        parts = urlsplit(url)
        fits = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.username is None
        return None if fits else "must be an http(s) address without user and password"
    except ValueError as error:
        return f"is no valid address ({error})"


class Webhooks:
    """Sends the webhooks of finished jobs."""

    def __init__(self, database: Database, secret: bytes, *, allow_private: bool) -> None:
        self.database, self.secret = database, secret
        handlers = [_NoRedirects()] if allow_private else [PublicHTTPHandler(), PublicHTTPSHandler(), _NoRedirects()]
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), *handlers)
        self._tasks: set[asyncio.Task[None]] = set()

    def send(self, job: Job) -> None:
        """Send the webhook of a job in the background."""
        task = asyncio.get_running_loop().create_task(self._send_until_taken(job))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def close(self) -> None:
        """Stop; what was not taken yet is sent again by the next server."""
        for task in self._tasks:
            task.cancel()

    async def _send_until_taken(self, job: Job) -> None:
        for pause in (*_PAUSES_SECONDS, None):
            if await asyncio.to_thread(self._is_taken, job):
                job.webhook_state = SENT
                break
            if pause is None:
                job.webhook_state = GIVEN_UP
            else:
                await asyncio.sleep(pause)
        await self.database.run(self.database.update, job, "webhook_state")

    def _is_taken(self, job: Job) -> bool:
        """One attempt; whether the receiver answered with a 2xx."""
        body = json.dumps(payload(job)).encode()
        headers = signed_headers(self.secret, job, body, int(time.time()))
        request = urllib.request.Request(str(job.webhook), data=body, headers=headers, method="POST")
        try:
            with self._opener.open(request, timeout=_TIMEOUT_SECONDS) as answer:
                return 200 <= int(answer.status) < 300
        except (OSError, ValueError):
            return False

"""The ASGI application: every route behind the guard. Light: no arrays; starlette only."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from pipeline.serve.errors import Refused, flat_error
from pipeline.serve.http.bodies import summary
from pipeline.serve.http.door import Door
from pipeline.serve.http.file_routes import FileRoutes
from pipeline.serve.http.guard import Guard
from pipeline.serve.http.metrics import metrics_text
from pipeline.serve.http.openapi import document
from pipeline.serve.http.queue_routes import QueueRoutes
from pipeline.serve.jobs.webhooks import public_keys
from pipeline.serve.settings import Settings

_PAGE = Path(__file__).with_name("page")
_MEDIA_TYPES = {".html": "text/html; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".css": "text/css"}
_PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; media-src 'self' blob:; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_SHOWN_JOBS = 50


class Site:
    """Endpoints that are this server's own."""

    def __init__(self, door: Door) -> None:
        self.door = door

    def routes(self) -> list[Route]:
        """All of them."""
        return [
            Route("/", self.page),
            Route("/page.js", self.page),
            Route("/page-zip.js", self.page),
            Route("/page.css", self.page),
            Route("/health", self.health),
            Route("/metrics", self.metrics),
            Route("/jobs", self.jobs),
            Route("/jobs/{id}", self.job),
            Route("/errors", self.errors),
            Route("/openapi.json", self.openapi),
            Route("/.well-known/jwks.json", self.keys),
        ]

    async def page(self, request: Request) -> Response:
        """A file of the page."""
        file = _PAGE / (request.url.path.strip("/") or "page.html")
        headers = {
            "content-security-policy": _PAGE_POLICY,
            "referrer-policy": "no-referrer",
            "cache-control": "no-cache",
        }
        return Response(file.read_bytes(), media_type=_MEDIA_TYPES[file.suffix], headers=headers)

    async def health(self, request: Request) -> Response:
        """Whether the server answers, and how long it has."""
        return JSONResponse({"status": "ok", "uptime_seconds": round(time.time() - self.door.began, 1)})

    async def metrics(self, request: Request) -> Response:
        """Figures for Prometheus."""
        ended = await self.door.database.run(self.door.database.counts)
        return PlainTextResponse(metrics_text(self.door, ended), media_type="text/plain; version=0.0.4")

    async def jobs(self, request: Request) -> Response:
        """The newest jobs of the caller."""
        found = await self.door.database.run(self.door.database.recent, request.state.owner, _SHOWN_JOBS)
        base = self.door.base_url(request)
        return JSONResponse({"jobs": [summary(self.door.board.active.get(job.id, job), base) for job in found]})

    async def job(self, request: Request) -> Response:
        """One job with its log and its losses."""
        job = await self.door.board.find(request.path_params["id"])
        if job is None or job.owner != request.state.owner:
            return JSONResponse(flat_error("there is no such request", "not_found"), 404)
        body = summary(job, self.door.base_url(request))
        return JSONResponse(
            body | {"logs": list(job.log), "losses": job.losses, "queue": self.door.board.position(job)}
        )

    async def errors(self, request: Request) -> Response:
        """What the `url` of an error points at."""
        text = "The type of an error is a stable name, which programs may match on; its msg says what to do.\n"
        return PlainTextResponse(text)

    async def openapi(self, request: Request) -> Response:
        """The OpenAPI document."""
        return JSONResponse(document(self.door.base_url(request)))

    async def keys(self, request: Request) -> Response:
        """The public key that webhooks are signed with."""
        return JSONResponse(public_keys(self.door.webhook_secret))


def make_app(settings: Settings) -> Starlette:
    """The application; its queue is opened when the server starts it."""
    door = Door(settings)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        await door.open()
        yield
        await door.close()

    app = Starlette(
        routes=[*Site(door).routes(), *FileRoutes(door).routes(), *QueueRoutes(door).routes()],
        lifespan=lifespan,
        exception_handlers={Refused: _refused, HTTPException: _http_error, Exception: _failed},
    )
    app.state.door = door
    app.add_middleware(Guard, settings=settings, signer=door.signer, counts=door.counts)
    return app


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    return JSONResponse(error.body, error.status, error.headers)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = "there is no such address" if error.status_code == 404 else error.detail
    return JSONResponse(flat_error(message, "bad_request"), error.status_code, error.headers)


async def _failed(request: Request, error: Exception) -> Response:
    return JSONResponse(flat_error("this server has a fault; its log says more", "internal_error"), 500)

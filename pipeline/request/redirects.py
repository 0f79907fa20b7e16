"""Opens http(s) URLs, following a few redirects and never one from https to http. Light: standard library only."""

from __future__ import annotations

import urllib.error
import urllib.request
from functools import lru_cache
from http.client import HTTPMessage
from typing import IO
from urllib.parse import urlsplit

MAX_REDIRECTS = 5


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects within http(s), but not from https to http."""

    max_redirections = MAX_REDIRECTS
    max_repeats = 2
    inf_msg = f"and redirects in circles, or more than {MAX_REDIRECTS} times; "

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> urllib.request.Request | None:
        """The next request, unless it would leave http(s) or go from https to http."""
        scheme = urlsplit(newurl).scheme
        if scheme not in ("http", "https") or (scheme == "http" and req.type == "https"):
            raise urllib.error.HTTPError(req.full_url, code, f"and redirects to a {scheme}: address", headers, fp)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


@lru_cache(maxsize=1)
def opener() -> urllib.request.OpenerDirector:
    """An opener for http(s) URLs only, with the proxies of the environment."""
    opened = urllib.request.OpenerDirector()
    for handler in (
        *(urllib.request.ProxyHandler(), urllib.request.HTTPHandler(), urllib.request.HTTPSHandler()),
        *(urllib.request.HTTPDefaultErrorHandler(), urllib.request.HTTPErrorProcessor(), _Redirects()),
    ):
        opened.add_handler(handler)
    return opened

"""Opens http(s) URLs: few redirects, never from https to http, and where asked to public addresses only.

The address that was checked is the one that is connected to. A server that fetches what a stranger names must not be
led to its own machine or network: not by an address, a name that resolves to one, a redirect, or a name that resolves
to another address the second time. Light: standard library only.
"""

from __future__ import annotations

import http.client
import ipaddress
import os
import socket
import urllib.error
import urllib.request
from functools import lru_cache
from http.client import HTTPMessage
from typing import IO, Any
from urllib.parse import urlsplit

MAX_REDIRECTS = 5
POLICY_VARIABLE = "SA3_FETCH_ADDRESSES"
"""`public`: http(s) downloads of this process connect to public addresses only."""
PUBLIC = "public"
_TRANSLATED = [ipaddress.ip_network(text) for text in ("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32")]
"""IPv6 networks whose addresses stand for IPv4 ones (NAT64, 6to4, Teredo)."""
_METADATA = {"168.63.129.16", "192.0.0.192"}
"""Addresses of clouds' own services that count as public (Azure, Oracle)."""


class AddressRefused(ValueError):
    """A name resolves to an address that is not public; asking again would not help."""


def public_only() -> bool:
    """Whether downloads of this process are limited to public addresses."""
    return os.environ.get(POLICY_VARIABLE) == PUBLIC


def is_public(text: str) -> bool:
    """Whether an IP address is neither private, loopback, link-local, multicast, reserved nor a cloud's metadata."""
    address = ipaddress.ip_address(text.partition("%")[0])
    mapped = getattr(address, "ipv4_mapped", None)
    if mapped is not None:
        return is_public(str(mapped))
    if address.version == 6 and any(address in network for network in _TRANSLATED):
        return False
    return address.is_global and str(address) not in _METADATA and not address.is_multicast


def checked_addresses(host: str, port: int) -> list[tuple[Any, ...]]:
    """What `socket.getaddrinfo` gives for a host, all of it public.

    Raises:
        AddressRefused: one of the addresses is not public.
        OSError: the name does not resolve.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    if any(not is_public(str(entry[4][0])) for entry in found):
        raise AddressRefused(f"{host} is an address of a private network or of this machine, which is not fetched from")
    return list(found)


def connect(host: str, port: int, timeout: float | None) -> socket.socket:
    """A connection to one of the checked addresses. Raises: AddressRefused, OSError."""
    last: OSError | None = None
    for family, kind, protocol, _, address in checked_addresses(host, port):
        connection = socket.socket(family, kind, protocol)
        try:
            connection.settimeout(timeout)
            connection.connect(address)
            return connection
        except OSError as error:
            connection.close()
            last = error
    raise last or OSError(f"{host} has no address")


def _create(address: tuple[str, int], timeout: Any = None, source_address: Any = None) -> socket.socket:
    """What http.client calls to connect; it asks for the name's addresses itself otherwise."""
    return connect(address[0], address[1], timeout if isinstance(timeout, int | float) else None)


class PublicHTTPConnection(http.client.HTTPConnection):
    """An HTTP connection to a checked address."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._create_connection = _create  # set by the base class


class PublicHTTPSConnection(http.client.HTTPSConnection):
    """An HTTPS connection to a checked address; the certificate is compared with the name."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._create_connection = _create


class PublicHTTPHandler(urllib.request.HTTPHandler):
    """Opens http: addresses."""

    def http_open(self, req: urllib.request.Request) -> Any:
        """The response."""
        return self.do_open(PublicHTTPConnection, req)


class PublicHTTPSHandler(urllib.request.HTTPSHandler):
    """Opens https: addresses."""

    def https_open(self, req: urllib.request.Request) -> Any:
        """The response."""
        return self.do_open(PublicHTTPSConnection, req)


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


def opener() -> urllib.request.OpenerDirector:
    """An opener for http(s) URLs only, with the proxies of the environment.

    Limited to public addresses it uses no proxy, which would connect in its place.
    """
    return _opener(public_only())


@lru_cache
def _opener(public: bool) -> urllib.request.OpenerDirector:
    opened = urllib.request.OpenerDirector()
    plain = (urllib.request.ProxyHandler(), urllib.request.HTTPHandler(), urllib.request.HTTPSHandler())
    for handler in (
        *((PublicHTTPHandler(), PublicHTTPSHandler()) if public else plain),
        *(urllib.request.HTTPDefaultErrorHandler(), urllib.request.HTTPErrorProcessor(), _Redirects()),
    ):
        opened.add_handler(handler)
    return opened

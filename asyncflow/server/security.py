"""Who may ask what: denied is what is not allowed, before any handler runs.

The dashboard can start and stop what its owner wrote, so it is guarded like a shell: a token by
default, also on this machine; a list of hosts, against names that are bound to its address; proof
that a change comes from its own pages; and answers that no page may use but its own.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit

from aiohttp import web

from asyncflow.errors import InvalidOption

Role = Literal["admin", "read"]
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

COOKIE = "asyncflow_session"
SAFE = frozenset({"GET", "HEAD"})
#: The header that only scripts of our own pages, and programs, can set.
OWN = "X-Asyncflow"
#: What the type of a problem begins with that is an error of asyncflow.
KIND = "urn:asyncflow:error:"
#: Bytes of a request.
MOST_BODY = 1024 * 1024

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self';"
    " img-src 'self' data:; font-src 'self'; frame-ancestors 'none'; base-uri 'none';"
    " form-action 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Problem(Exception):
    """An answer that says what is wrong (RFC 9457).

    Args:
        status: of HTTP.
        detail: one sentence for people.
        kind: the name of the error of asyncflow that it is, for programs.
    """

    def __init__(self, status: int, detail: str, title: str = "", kind: str = "") -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.title = title or TITLES.get(status, "Error")
        self.kind = kind

    def response(self) -> web.Response:
        body = {
            "type": f"{KIND}{self.kind}" if self.kind else "about:blank",
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
        }
        text = json.dumps(body, ensure_ascii=False)
        return web.Response(
            status=self.status, body=text.encode(), content_type="application/problem+json"
        )


TITLES = {
    400: "Bad request",
    401: "Not signed in",
    403: "Forbidden",
    404: "Not found",
    405: "Method not allowed",
    409: "Conflict",
    413: "Too large",
    415: "Wrong content type",
    421: "Wrong host",
    422: "Invalid",
    500: "Internal error",
    503: "Not available",
}


@dataclass(slots=True)
class Access:
    """Who may ask, and how they prove it.

    Args:
        token: of who may do everything; by default one is made.
        read_token: of who may only look; None: nobody.
        hosts: names by which the server may be called, without port; None: not checked, because
            an application around it does.
        authorize: instead of tokens, an application's own: gets the request, and gives "admin",
            "read" or None.

    Raises:
        InvalidOption: a token cannot be sent in a header, or both are the same.
    """

    token: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)
    read_token: str | None = field(default=None, repr=False)
    hosts: frozenset[str] | None = frozenset({"127.0.0.1", "localhost", "::1"})
    authorize: Callable[[web.Request], Role | None] | None = None

    def __post_init__(self) -> None:
        for name, token in (("token", self.token), ("read token", self.read_token)):
            if token is None:
                continue
            if not (token and token.isascii() and token.isprintable() and token == token.strip()):
                raise InvalidOption(f"the {name}: give letters, digits and signs of ASCII only")
        if self.token == self.read_token:
            raise InvalidOption("who may only look needs a token of their own: the two are equal")

    def role_of(self, given: str) -> Role | None:
        """The role that a token gives, if any; in a time that does not tell how wrong it is."""
        found: Role | None = None
        for token, role in ((self.token, "admin"), (self.read_token, "read")):
            if token is not None and hmac.compare_digest(_digest(given), _digest(token)):
                found = role  # type: ignore[assignment] # one of the two
        return found

    def role(self, request: web.Request) -> Role | None:
        """The role of who asks."""
        if self.authorize is not None:
            return self.authorize(request)
        header = request.headers.get("Authorization", "")
        if header.startswith("Bearer "):
            return self.role_of(header.removeprefix("Bearer ").strip())
        cookie = request.cookies.get(COOKIE)
        return self.role_of(cookie) if cookie else None


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "replace")).digest()


def guard(access: Access, public: Collection[object]) -> Any:
    """The middleware that lets through what may pass.

    Args:
        public: the handlers that need no token, wherever the application is mounted.
    """

    @web.middleware
    async def guarded(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            _check_host(request, access)
            is_public = request.match_info.handler in public
            if not is_public:
                role = access.role(request)
                if role is None:
                    raise Problem(401, "give the token that the server printed when it started")
                if request.method not in SAFE and role != "admin":
                    raise Problem(403, "this token may only look")
            if request.method not in SAFE:
                _check_origin(request)
            if isinstance(request.match_info.http_exception, web.HTTPMethodNotAllowed):
                raise Problem(405, f"{request.method} is not for this path")
            if request.match_info.http_exception is not None:
                raise Problem(404, "there is nothing at this path")
            answer = await handler(request)
        except Problem as problem:
            answer = problem.response()
            if problem.status == 401:
                answer.headers["WWW-Authenticate"] = "Bearer"
        if not answer.prepared:
            answer.headers.update(HEADERS)
            answer.headers.setdefault("Cache-Control", "no-store")
        return answer

    return guarded


def _check_host(request: web.Request, access: Access) -> None:
    if access.hosts is None:
        return
    host = (request.headers.get("Host") or "").strip().lower()
    name = urlsplit(f"//{host}").hostname if host else None
    if name not in access.hosts:
        raise Problem(421, "the server does not go by this name: start it with --host-name NAME")


def _check_origin(request: web.Request) -> None:
    """A change must come from our own page, or from a program."""
    origin = request.headers.get("Origin")
    if origin is not None:
        parts = urlsplit(origin)
        if parts.netloc.lower() != (request.headers.get("Host") or "").lower():
            raise Problem(403, "the request comes from another site")
    if request.headers.get("Sec-Fetch-Site", "none") not in ("same-origin", "none"):
        raise Problem(403, "the request comes from another site")
    if request.headers.get(OWN) is None:
        raise Problem(403, f"send the header {OWN}: 1 with whatever changes something")
    if request.can_read_body and request.content_type != "application/json":
        raise Problem(415, "send application/json")

"""The web application: routes, pages, and who serves them."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from datetime import datetime
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import orjson
from aiohttp import web

from asyncflow import __version__
from asyncflow.errors import InvalidOption, MissingExtra
from asyncflow.failures import told
from asyncflow.server import openapi
from asyncflow.server.api import ROUTES, Api, Route, answer_of, taken
from asyncflow.server.asking import Accepted
from asyncflow.server.files import File, Files, read_files
from asyncflow.server.live import Live
from asyncflow.server.models import Session
from asyncflow.server.security import COOKIE, MOST_BODY, Access, Problem, Role, guard
from asyncflow.server.stored import Stored

if TYPE_CHECKING:
    from asyncflow.engine import Engine

_log = logging.getLogger("asyncflow")

#: Addresses of this machine that nobody else reaches.
LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
#: Where an application keeps who may ask: ``app[ACCESS].token``.
ACCESS: web.AppKey[Access] = web.AppKey("asyncflow_access", Access)


def make_app(engine: Engine, access: Access | None = None, *, embedded: bool) -> web.Application:
    """The dashboard and its API for an engine that stays open as long as it is served.

    Args:
        access: who may ask; by default whoever has the token that is made.
        embedded: whether the engine runs flows in this process; one that does not must be open.
    """
    if access is None:
        access = Access()
    elif not isinstance(access, Access):
        raise InvalidOption(f"access={access!r}: give an asyncflow.server.security.Access")
    api = Api(engine, embedded)
    if not embedded:
        engine.commands.only_asks = True
    live = Live(api)
    public: set[Any] = {_sign_out}
    app = web.Application(middlewares=[_outermost(access, public)], client_max_size=MOST_BODY)
    app[ACCESS] = access
    for route in ROUTES:
        handle = _handler(api, route)
        app.router.add_route(route.method, route.path, handle)
        if route.public:
            public.add(handle)
    sign_in = _sign_in(api, access)
    public.add(sign_in)
    app.router.add_post("/api/session", sign_in)
    app.router.add_delete("/api/session", _sign_out)
    app.router.add_get("/api/me", _me(api, access), allow_head=False)
    app.router.add_get("/api/openapi.json", _document, allow_head=False)
    app.router.add_get("/api/stream", live.stream, allow_head=False)
    app.router.add_get("/metrics", _metrics(api), allow_head=False)
    files = read_files()
    page = _page(files, api, access)
    public.add(page)
    app.router.add_get("/", page)
    for path, one in files.files.items():
        file = _file(one)
        public.add(file)
        app.router.add_get(path, file)

    async def close(_: web.Application) -> None:
        await live.aclose()

    app.on_shutdown.append(close)
    return app


def _outermost(access: Access, public: set[Any]) -> Any:
    inner = guard(access, public)

    @web.middleware
    async def outermost(
        request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        async def safely(asked: web.Request) -> web.StreamResponse:
            try:
                return await handler(asked)
            except (Problem, asyncio.CancelledError):
                raise
            except web.HTTPException as error:
                raise Problem(error.status, error.reason) from None
            except Exception as error:
                problem = answer_of(error)
                if problem.status == 500:
                    _log.error("%s %s failed: %s", asked.method, asked.path, told(error, 2000))
                raise problem from None

        answer: web.StreamResponse = await inner(request, safely)
        return answer

    return outermost


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat().replace("+00:00", "Z")
    raise TypeError(f"{type(value).__name__} is no JSON")


def _json(value: Any) -> web.Response:
    """An answer, in JSON."""
    try:
        data = orjson.dumps(value, option=orjson.OPT_UTC_Z)
    except TypeError:
        # It takes no large numbers, and no lone surrogates, as in names of files: those are spelled
        # out.
        text = json.dumps(value, default=_plain, ensure_ascii=False, allow_nan=False)
        data = text.encode("utf-8", "backslashreplace")
    status = 202 if isinstance(value, Accepted) else 200
    return web.Response(status=status, body=data, content_type="application/json")


def _handler(api: Api, route: Route) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def handle(request: web.Request) -> web.Response:
        arguments = await taken(request, route)
        return _json(await route.handle(api, **arguments))

    return handle


def _sign_in(api: Api, access: Access) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def sign_in(request: web.Request) -> web.Response:
        route = Route("POST", "", _sign_out, None, "", body=Session)
        body: Session = (await taken(request, route))["body"]
        role = access.role_of(body.token)
        if role is None:
            raise Problem(401, "the server does not know this token")
        answer = _json(_session(api, role))
        answer.set_cookie(
            COOKIE,
            body.token,
            httponly=True,
            samesite="Strict",
            secure=request.secure,
            path=_home(request),
            max_age=30 * 86_400,
        )
        return answer

    return sign_in


async def _sign_out(request: web.Request) -> web.Response:
    answer = _json({"ok": True})
    answer.del_cookie(COOKIE, path=_home(request), samesite="Strict")
    return answer


def _home(request: web.Request) -> str:
    """The path under which the application is mounted."""
    return request.path.rpartition("/api/")[0] + "/"


def _session(api: Api, role: Role | None) -> dict[str, Any]:
    return {"role": role, "version": __version__, "embedded": api.embedded}


def _me(api: Api, access: Access) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def me(request: web.Request) -> web.Response:
        """Who asks, and of what."""
        return _json(_session(api, access.role(request)))

    return me


async def _document(request: web.Request) -> web.Response:
    return _json(openapi.document())


def _metrics(api: Api) -> Callable[[web.Request], Awaitable[web.Response]]:
    stored: Stored | None = None

    async def metrics(request: web.Request) -> web.Response:
        nonlocal stored
        try:
            own = api.engine.metrics_text()
        except MissingExtra as error:
            raise Problem(501, str(error)) from None
        if stored is None:
            stored = Stored(api.engine)
        text = own + await stored.text()
        return web.Response(
            body=text, headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
        )

    return metrics


def _file(file: File) -> Callable[[web.Request], Awaitable[web.Response]]:
    """A file that is never another one: its path has the version."""
    charset = "utf-8" if file.kind.startswith("text/") else None

    async def handle(request: web.Request) -> web.Response:
        return web.Response(
            body=file.data,
            content_type=file.kind,
            charset=charset,
            headers={"Cache-Control": "public, max-age=31536000, immutable"},
        )

    return handle


def _page(
    files: Files, api: Api, access: Access
) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def page(request: web.Request) -> web.Response:
        """The page, for anybody; whoever is known is told who it is."""
        role = access.role(request)
        data = files.page(None if role is None else _session(api, role))
        tag = f'"{sha256(data).hexdigest()[:32]}"'
        headers = {"ETag": tag, "Cache-Control": "private, no-cache"}
        if request.headers.get("If-None-Match") == tag:
            return web.Response(status=304, headers=headers)
        return web.Response(body=data, content_type="text/html", charset="utf-8", headers=headers)

    return page


async def serve_app(
    engine: Engine, host: str, port: int, access: Access | None, *, embedded: bool
) -> tuple[web.AppRunner, str]:
    """Serve the dashboard at an address: what ends it, and the URL to open.

    Raises:
        InvalidOption: the address can be reached from elsewhere, and who may ask was not said.
    """
    if host not in LOOPBACK and access is None:
        raise InvalidOption(
            f"host={host!r} can be reached from other machines: say who may ask with"
            " access=Access(token=..., hosts=...), or keep 127.0.0.1"
        )
    access = access or Access()
    app = make_app(engine, access, embedded=embedded)
    runner = web.AppRunner(app, access_log=None, handle_signals=False)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port)
        await site.start()
    except OSError as error:
        await runner.cleanup()
        raise InvalidOption(
            f"port {port} of {host} cannot be had: {error.strerror}: give another port or host"
        ) from None
    number = runner.addresses[0][1]
    shown = f"[{host}]" if ":" in host else host
    return runner, f"http://{shown}:{number}/#token={access.token}"

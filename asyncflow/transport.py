"""How a client talks to a server: where it is, who asks, and what an answer means.

A token is sent to the origin that it was given for, and to nobody else: redirects are not
followed, and no text of an error, log or `repr` holds it. Whatever a server sends is bounded.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import os
import random
import ssl
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlsplit

import aiohttp
from pydantic_core import PydanticSerializationError, to_jsonable_python
from yarl import URL

from asyncflow import errors
from asyncflow._version import __version__
from asyncflow.errors import (
    AsyncflowError,
    InvalidOption,
    InvalidParameters,
    ServerError,
    ServerTimeout,
    ServerUnreachable,
    UnknownRun,
)

#: Where the server is, the token that it gave, and that the token may go where others can read it.
SERVER, TOKEN, ALLOW_HTTP = "ASYNCFLOW_SERVER", "ASYNCFLOW_TOKEN", "ASYNCFLOW_ALLOW_HTTP"
#: Bytes of an answer, and of one message of a stream.
MOST_BYTES = 64 * 1024 * 1024
#: Seconds without a word after which a stream is given up and begun anew.
SILENCE = 60.0
#: The longest wait between two attempts to get a stream, in seconds.
LONGEST = 10.0
#: Answers of something between us and the server, or of a server that is busy: they may pass.
PASSING = frozenset({502, 503, 504})
_KIND = "urn:asyncflow:error:"
#: Errors that are made of one text.
_TEXTUAL: Mapping[str, type[AsyncflowError]] = {
    kind.__name__: kind
    for kind in (
        errors.AlreadyAnswered,
        errors.DeploymentBusy,
        errors.InvalidDefinition,
        errors.InvalidOption,
        errors.InvalidParameters,
        errors.ResultNotStored,
        errors.ResultUnreadable,
        errors.RunNotResumable,
        errors.RunTaken,
        errors.StoreClosed,
        errors.StoreError,
        errors.TemplateError,
        errors.UnknownAutomation,
        errors.UnknownChannel,
        errors.UnknownDeployment,
        errors.UnknownFlow,
        errors.UnknownTask,
    )
}


# --- where ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server is, without a slash at the end, and the token that it takes."""

    base: str
    token: str | None = field(default=None, repr=False)


def address(
    url: str | None = None,
    token: str | None = None,
    allow_http: bool | None = None,
    environ: Mapping[str, str] | None = None,
) -> Address:
    """What a user says about a server, checked.

    Args:
        url: by default $ASYNCFLOW_SERVER. The one that a server prints holds its token.
        token: by default what the URL has, else $ASYNCFLOW_TOKEN; that belongs to
            $ASYNCFLOW_SERVER, where there is one, and is sent to no other.
        allow_http: whether a token may go to another machine unencrypted; by default
            $ASYNCFLOW_ALLOW_HTTP.
        environ: where the variables are.

    Raises:
        InvalidOption: it makes no sense, or the token would go where others can read it.
    """
    environ = os.environ if environ is None else environ
    stored = environ.get(SERVER, "").strip()
    if url is None:
        url = stored
        if not url:
            raise InvalidOption(f"which server? Give its URL, or set ${SERVER}")
    base, within = _parts(url)
    found = token if token is not None else within
    if found is None and environ.get(TOKEN):
        home = _parts(stored)[0] if stored else base
        if _origin(home) == _origin(base):
            found = environ[TOKEN]
    if found is None and stored:
        own, within = _parts(stored)
        found = within if _origin(own) == _origin(base) else None
    if found is not None and not (
        found.isascii() and found.isprintable() and found == found.strip()
    ):
        raise InvalidOption("the token has characters that no token has: copy it again")
    if allow_http is None:
        allow_http = environ.get(ALLOW_HTTP, "").lower() in ("1", "true", "yes", "on")
    if found and base.startswith("http://") and not _is_here(base) and not allow_http:
        raise InvalidOption(
            f"the token would go unencrypted to {base}, for others on the way to read: use"
            f" https://, or a tunnel to a port of this machine; or say allow_http=True"
            f" (${ALLOW_HTTP}=1) where the network is your own"
        )
    return Address(base, found or None)


def _parts(url: str) -> tuple[str, str | None]:
    """The base of a URL, and the token in it. No error names the URL: it may hold a token."""
    try:
        parts = urlsplit(url.strip())
        port = parts.port
    except ValueError:
        raise InvalidOption("the URL of the server is none: give http://127.0.0.1:4200") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InvalidOption(
            "the URL of the server must begin with http:// or https://, as http://127.0.0.1:4200"
        )
    if parts.username is not None or parts.password is not None:
        raise InvalidOption("the URL of the server must have no user and password in it")
    if parts.query:
        raise InvalidOption("the URL of the server must have no ? in it: give its address only")
    token = None
    for part in parts.fragment.split("&"):
        name, _, value = part.partition("=")
        if name == "token" and value:
            token = unquote(value)
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    where = f"{host}:{port}" if port is not None else host
    path = parts.path.rstrip("/").removesuffix("/index.html")
    return f"{parts.scheme}://{where}{path}", token


def _origin(base: str) -> tuple[str, str | None, int]:
    parts = urlsplit(base)
    return parts.scheme, parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)


def _is_here(base: str) -> bool:
    """Whether what is sent there stays on this machine."""
    host = urlsplit(base).hostname or ""
    if host == "localhost":
        return True
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return False


# --- what an answer means -------------------------------------------------------------------------


def error_of(base: str, status: int, problem: Mapping[str, Any], run_id: str | None) -> Exception:
    """The error that an answer of a server stands for.

    Args:
        problem: of RFC 9457.
        run_id: the run that it was asked about.
    """
    title = str(problem.get("title") or f"HTTP {status}")[:200]
    detail = str(problem.get("detail") or "")[:2000]
    kind = str(problem.get("type") or "").removeprefix(_KIND)
    if kind == UnknownRun.__name__ and run_id is not None:
        return UnknownRun(run_id)
    if kind in _TEXTUAL:
        return _TEXTUAL[kind](detail or title)
    if status == 401:
        detail = (
            f"the server at {base} does not know the token: give the one that it printed when it"
            f" started, in its URL, as token= or as ${TOKEN}"
        )
    return ServerError(status, title, detail)


def no_answer(base: str, error: Exception, seconds: float) -> AsyncflowError:
    """Why nothing came back, and what to do about it."""
    if isinstance(error, TimeoutError):
        return ServerTimeout(
            f"the server at {base} has not answered within {seconds:g} s: look whether it is"
            " busy or hangs, or give it more time"
        )
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        reason = getattr(error.certificate_error, "verify_message", "") or "it cannot be checked"
        return ServerUnreachable(
            f"the certificate of {base} is not trusted ({reason}): give one that is, or a context"
            " that knows it, as ssl="
        )
    if isinstance(error, aiohttp.ClientConnectorSSLError | ssl.SSLError):
        return ServerUnreachable(f"{base} speaks no TLS that we do: is it http:// there?")
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return ServerUnreachable(f"there is no machine by the name in {base}: look at its spelling")
    if isinstance(error, aiohttp.ClientConnectorError):
        why = error.os_error.strerror or "it cannot be reached"
        return ServerUnreachable(
            f"no server answers at {base} ({why}): start it with `asyncflow server start`, or look"
            " at the address"
        )
    if isinstance(error, aiohttp.ClientPayloadError | aiohttp.ServerDisconnectedError | OSError):
        return ServerUnreachable(
            f"the connection to {base} broke before the answer came: what was asked for may have"
            " been done"
        )
    return ServerUnreachable(f"what answers at {base} is no server of HTTP: look at the address")


def stranger(base: str, kind: str) -> ServerError:
    """What answers is no server of ours."""
    return ServerError(
        0,
        "Not asyncflow",
        f"what answers at {base} is no asyncflow server (it sends {kind or 'nothing'}): look at"
        " the address, and at what stands before the server",
    )


def moved(base: str, status: int, to: str) -> ServerError:
    """The server is elsewhere: whoever trusts that place with the token must say so."""
    parts = urlsplit(to)
    where = f"{parts.scheme}://{parts.netloc}{parts.path}" if parts.netloc else parts.path
    where = where.partition("/api/")[0].rpartition("@")[2][:200]
    return ServerError(
        status, "Moved", f"{base} sends elsewhere ({where}), which is not followed: give that URL"
    )


@dataclass(slots=True)
class Message:
    """One message of a stream."""

    id: str
    event: str
    data: str


class Messages:
    """Makes messages of the bytes of a stream (server-sent events)."""

    def __init__(self, most: int = MOST_BYTES) -> None:
        self._most = most
        self._rest = b""
        self._size = 0
        self._id = ""
        self._event = ""
        self._data: list[str] = []

    def feed(self, data: bytes) -> list[Message]:
        """The messages that are complete by now.

        Raises:
            ServerError: one is too large.
        """
        self._size += len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        found = [one for line in lines if (one := self._line(line)) is not None]
        if found:
            self._size = len(self._rest)
        if self._size > self._most:
            raise too_large(self._most)
        return found

    def _line(self, line: bytes) -> Message | None:
        text = line.rstrip(b"\r").decode("utf-8", "replace")
        if not text:
            made = Message(self._id, self._event or "message", "\n".join(self._data))
            is_empty = not self._data
            self._event, self._data = "", []
            return None if is_empty else made
        name, _, value = text.partition(":")
        value = value.removeprefix(" ")
        match name:
            case "id":
                self._id = value
            case "event":
                self._event = value
            case "data":
                self._data.append(value)
            case "":
                self._size = len(self._rest)  # a sign of life
        return None


def too_large(most: int) -> ServerError:
    return ServerError(
        0, "Too large", f"an answer of the server is larger than {most:,} bytes: ask for less"
    )


def delays(first: float, longest: float, chance: Callable[[], float]) -> Callable[[int], float]:
    """Seconds to wait after the n-th failure (from 0): twice as long each time, spread by half."""

    def delay(n: int) -> float:
        return float(min(longest, first * 2 ** min(n, 30)) * (0.5 + chance()))

    return delay


# --- asking ---------------------------------------------------------------------------------------


class Transport:
    """Asks one server. Use it in `async with`.

    Args:
        timeout: seconds for one answer.
        retries: how often what changes nothing twice is asked again when no answer came.
        tls: another context for https.
    """

    def __init__(
        self, where: Address, timeout: float, retries: int, tls: ssl.SSLContext | None
    ) -> None:
        self.base = where.base
        self._token = where.token
        self.timeout = timeout
        self.retries = retries
        self._tls = tls
        self._session: aiohttp.ClientSession | None = None
        self.delay = delays(0.2, LONGEST, random.random)
        self.pause: Callable[[float], Any] = asyncio.sleep

    def __repr__(self) -> str:
        return f"Transport({self.base!r})"

    async def open(self) -> None:
        """Begin; nothing is sent yet."""
        headers = {"User-Agent": f"asyncflow/{__version__}", "Accept": "application/json"}
        if self._token is not None:
            headers["Authorization"] = f"Bearer {self._token}"
        self._session = aiohttp.ClientSession(
            headers=headers,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=self.timeout),
            connector=aiohttp.TCPConnector(ssl=self._tls if self._tls is not None else True),
            trust_env=False,
        )

    async def aclose(self) -> None:
        """End: connections are closed."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            raise ServerUnreachable("this client is not open: use it in `async with Client(...)`")
        return self._session

    async def ask(
        self,
        method: str,
        path: str,
        *,
        query: list[tuple[str, str]] | None = None,
        body: Any = None,
        again: bool = False,
        run_id: str | None = None,
    ) -> tuple[int, Any]:
        """Ask, and give the status and the JSON that came back.

        Args:
            path: below ``/api``, quoted.
            again: whether doing it twice is the same as once.
            run_id: the run that it is about, for errors.

        Raises:
            ServerUnreachable, ServerTimeout: no answer came.
            AsyncflowError: the one that the answer stands for.
        """
        data = None if method in ("GET", "HEAD") else _dumped(body)
        failures = 0
        while True:
            try:
                return await self._once(method, path, query, data, run_id)
            except ServerUnreachable:
                if not again or failures >= self.retries or self._session is None:
                    raise
            except _Passing as passing:
                if not again or failures >= self.retries:
                    raise passing.error from None
            await self.pause(self.delay(failures))
            failures += 1

    async def _once(
        self,
        method: str,
        path: str,
        query: list[tuple[str, str]] | None,
        data: bytes | None,
        run_id: str | None,
    ) -> tuple[int, Any]:
        headers = {}
        if data is not None:
            headers = {"X-Asyncflow": "1", "Content-Type": "application/json"}
        try:
            async with self._opened().request(
                method, self._url(path, query), data=data, headers=headers, allow_redirects=False
            ) as answer:
                if 300 <= answer.status < 400:
                    raise moved(self.base, answer.status, answer.headers.get("Location", ""))
                text = await self._read(answer)
                return answer.status, self._meaning(answer, text, run_id)
        except AsyncflowError:
            raise
        except (aiohttp.ClientError, OSError) as error:
            # What aiohttp raises may know the headers of the request.
            raise no_answer(self.base, error, self.timeout) from None

    def _url(self, path: str, query: list[tuple[str, str]] | None = None) -> URL:
        url = URL(f"{self.base}/api{path}", encoded=True)
        return url.with_query(query) if query else url

    @staticmethod
    async def _read(answer: aiohttp.ClientResponse) -> bytes:
        parts, size = [], 0
        async for chunk in answer.content.iter_any():
            size += len(chunk)
            if size > MOST_BYTES:
                raise too_large(MOST_BYTES)
            parts.append(chunk)
        return b"".join(parts)

    def _meaning(self, answer: aiohttp.ClientResponse, text: bytes, run_id: str | None) -> Any:
        kind = answer.headers.get("Content-Type", "").partition(";")[0].strip().lower()[:60]
        is_json = kind in ("application/json", "application/problem+json")
        found: Any = None
        with contextlib.suppress(ValueError, RecursionError):
            found = json.loads(text) if is_json else None
        if answer.status >= 400:
            if isinstance(found, dict) and kind == "application/problem+json":
                error = error_of(self.base, answer.status, found, run_id)
            elif answer.status in PASSING:
                detail = f"what stands before the server at {self.base} answers {answer.status}"
                error = ServerError(answer.status, "Not available", f"{detail}: is it running?")
            else:
                error = stranger(self.base, kind)
            raise _Passing(error) if answer.status in PASSING else error
        if not isinstance(found, dict):
            raise stranger(self.base, kind)
        return found

    @contextlib.asynccontextmanager
    async def listen(self, path: str, last: int) -> AsyncIterator[Stream]:
        """The messages of a stream, from the one after *last* on.

        Raises:
            ServerUnreachable, ServerTimeout: it broke, or nothing was heard for too long.
        """
        headers = {"Accept": "text/event-stream", "Last-Event-ID": str(last)}
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=self.timeout, sock_read=max(SILENCE, self.timeout)
        )
        try:
            async with self._opened().get(
                self._url(path), headers=headers, timeout=timeout, allow_redirects=False
            ) as answer:
                if 300 <= answer.status < 400:
                    raise moved(self.base, answer.status, answer.headers.get("Location", ""))
                if answer.status != 200:
                    self._meaning(answer, await self._read(answer), None)
                if answer.content_type != "text/event-stream":
                    raise stranger(self.base, answer.content_type)
                yield Stream(answer)
        except AsyncflowError:
            raise
        except _Passing as passing:
            raise ServerUnreachable(str(passing.error)) from None
        except (aiohttp.ClientError, OSError) as error:
            raise no_answer(self.base, error, SILENCE) from None


class Stream:
    """What a server sends as it happens."""

    def __init__(self, answer: aiohttp.ClientResponse) -> None:
        self._answer = answer
        self._made = Messages()
        self._ready: deque[Message] = deque()

    async def next(self) -> Message | None:
        """The next message; None: the server has ended the stream."""
        while not self._ready:
            chunk = await self._answer.content.readany()
            if not chunk:
                return None
            self._ready.extend(self._made.feed(chunk))
        return self._ready.popleft()


class _Passing(Exception):
    """An answer that may be another one soon."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error


def _dumped(body: Any) -> bytes:
    try:
        return json.dumps(to_jsonable_python(body or {}), allow_nan=False).encode()
    except (PydanticSerializationError, ValueError, RecursionError):
        raise InvalidParameters(
            "what is sent must be plain data: it holds something that is no JSON"
        ) from None


__all__ = [
    "ALLOW_HTTP", "SERVER", "TOKEN", "Address", "Message", "Messages", "Stream", "Transport",
    "address",
]  # fmt: skip

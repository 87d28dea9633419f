"""Webhooks: signed, and kept from addresses that are not for them.

The body is signed as in most services that send webhooks: an HMAC-SHA256 over the time and the
body, so that a receiver can tell who sent it, and that it is not an old one. Where a name leads
is checked after it was resolved, on the very addresses that are connected to.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import socket
from collections.abc import Mapping
from typing import Any

from aiohttp.abc import AbstractResolver
from aiohttp.resolver import DefaultResolver
from yarl import URL

from asyncflow.errors import DeliveryFailed, InvalidOption, InvalidSignature
from asyncflow.notifications.addresses import is_public
from asyncflow.notifications.channels import Channel
from asyncflow.retry import RETRY_AFTER_CAP, parse_retry_after

#: Redirects that are followed, each checked like the first.
MOST_REDIRECTS = 3
#: What may go better another time, beside all of 5xx.
_AGAIN = frozenset({408, 425, 429})


def sign(secret: str, timestamp: int, body: bytes) -> str:
    """The signature of a body that is sent at a time."""
    signed = str(timestamp).encode() + b"." + body
    return f"v1={hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest()}"


def verify_webhook(
    secret: str,
    headers: Mapping[str, str],
    body: bytes,
    *,
    tolerance_seconds: float = 300.0,
    now: float | None = None,
) -> None:
    """Make sure that a webhook is from who knows the secret, and is not an old one.

    Args:
        headers: of the request, in any case.
        body: as it came, byte by byte.
        tolerance_seconds: how far the clocks may be apart.
        now: seconds since the epoch; by default the time.

    Raises:
        InvalidSignature: it is not.
    """
    if not isinstance(secret, str) or not secret:
        raise InvalidOption("give the secret that signs the webhooks")
    lower = {name.lower(): value for name, value in headers.items()}
    stamp, signature = lower.get("asyncflow-timestamp", ""), lower.get("asyncflow-signature", "")
    if not stamp.isascii() or not stamp.isdigit() or len(stamp) > 12 or not signature.isascii():
        raise InvalidSignature("the webhook is not signed")
    if not any(
        hmac.compare_digest(one.strip(), sign(secret, int(stamp), body))
        for one in signature.split(",")
    ):
        raise InvalidSignature("the webhook is signed with another secret, or was changed")
    if now is None:
        import time

        now = time.time()
    if abs(now - int(stamp)) > tolerance_seconds:
        raise InvalidSignature(f"the webhook was signed {now - int(stamp):,.0f} s ago")


class NotPublic(OSError):
    """A name or URL leads to an address that the internet cannot reach."""


class Guard(AbstractResolver):
    """A resolver that gives only addresses that a webhook may go to.

    Args:
        inner: what resolves; by default what aiohttp takes.
    """

    def __init__(self, inner: Any = None) -> None:
        self._inner = inner or DefaultResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[Any]:
        found = await self._inner.resolve(host, port, family)
        fine = [one for one in found if is_public(one["host"])]
        if not fine:
            raise NotPublic(f"{host} leads to an address that is not public")
        return fine

    async def close(self) -> None:
        await self._inner.close()


def guarded(info: Any) -> socket.socket:
    """A socket for a connection to this address: the last place where one can be refused.

    However an address was written and resolved, this is the one that is connected to.
    """
    family, kind, protocol, _, address = info
    if not is_public(str(address[0])):
        raise NotPublic("it leads to an address that is not public")
    return socket.socket(family, kind, protocol)


async def post(
    channel: Channel, message: Mapping[str, Any], event_id: str, now: float, resolver: Any = None
) -> str:
    """Send a message as a webhook; what came of it.

    Only the status of the answer counts: its body is not read.

    Args:
        message: plain data.
        event_id: the same for all attempts.
        resolver: of names, for tests.

    Raises:
        DeliveryFailed: it was not taken.
    """
    import aiohttp

    text = json.dumps(message, default=str)
    if "NaN" in text or "Infinity" in text:  # which JSON has not
        text = json.dumps(json.loads(text, parse_constant=lambda _: None))
    body = text.encode()
    stamp = int(now)
    headers = {
        "User-Agent": "asyncflow",
        **channel.headers,
        "Content-Type": "application/json",
        "Asyncflow-Timestamp": str(stamp),
        "Asyncflow-Event-Id": event_id,
    }
    if channel.key is not None:
        headers["Asyncflow-Signature"] = sign(channel.key, stamp, body)
    private = channel.allow_private
    connector = aiohttp.TCPConnector(
        resolver=resolver if private else Guard(resolver),
        socket_factory=None if private else guarded,
        use_dns_cache=False,
        force_close=True,
    )
    timeout = aiohttp.ClientTimeout(total=channel.timeout_seconds)
    async with aiohttp.ClientSession(
        connector=connector, timeout=timeout, trust_env=False, cookie_jar=aiohttp.DummyCookieJar()
    ) as web:
        url = first = _checked(channel.target, private)
        for _ in range(MOST_REDIRECTS + 1):
            try:
                async with web.post(
                    url, data=body, headers=headers, allow_redirects=False
                ) as answer:
                    status, told = answer.status, answer.headers
            except TimeoutError:
                raise DeliveryFailed(f"no answer within {channel.timeout_seconds:g} s") from None
            except (aiohttp.ClientError, OSError) as error:
                # Of refused addresses, too: what a name leads to may change.
                raise DeliveryFailed(_reason(error)) from None
            if status not in (301, 302, 303, 307, 308):
                return _judge(status, told, now)
            target = _joined(url, told.get("Location", ""), private)
            if target.scheme != "https" and url.scheme == "https":
                raise DeliveryFailed("it redirects from https to http", final=True)
            if target.origin() != first.origin():
                # Another receiver: it gets nothing that proves who we are.
                headers = {
                    name: value
                    for name, value in headers.items()
                    if name != "Asyncflow-Signature" and name not in channel.headers
                }
            url = target
    raise DeliveryFailed(f"it redirects more than {MOST_REDIRECTS} times", final=True)


def _joined(url: URL, location: str, private: bool) -> URL:
    """Where a redirect leads."""
    try:
        target = url.join(URL(location))
        if not location or target.user is not None or target.scheme not in ("http", "https"):
            raise ValueError
        return _checked(str(target), private)
    except ValueError:
        raise DeliveryFailed("it redirects to what is no web address", final=True) from None


def _checked(text: str, private: bool) -> URL:
    """A URL as aiohttp reads it, unless an address stands in it that is not public."""
    url = URL(text)
    host = (url.raw_host or "").rstrip(".").lower()
    if not host:
        raise ValueError
    if private:
        return url
    try:
        # As the C library reads them: 2130706433, 0x7f.1 and 127.1 are all 127.0.0.1.
        literal = socket.inet_ntoa(socket.inet_aton(host))
    except OSError:
        literal = host if ":" in host else ""
    if (literal and not is_public(literal)) or host == "localhost" or host.endswith(".localhost"):
        raise DeliveryFailed(
            f"{host} is not a public address: allow_private=True of the channel allows it",
            final=True,
        )
    return url


def _reason(error: BaseException) -> str:
    """What went wrong, without the URL, which aiohttp tells of in some errors."""
    inner = getattr(error, "os_error", None) or error
    name = type(error).__name__
    if isinstance(inner, OSError):
        return f"{name}: {inner.strerror or inner}"[:300]
    return name


def _judge(status: int, headers: Mapping[str, str], now: float) -> str:
    if 200 <= status < 300:
        return f"HTTP {status}"
    if status in _AGAIN or status >= 500:
        after = parse_retry_after(headers.get("Retry-After", ""), now)
        raise DeliveryFailed(
            f"HTTP {status}", after=None if after is None else min(after, RETRY_AFTER_CAP)
        )
    raise DeliveryFailed(f"HTTP {status}", final=True)

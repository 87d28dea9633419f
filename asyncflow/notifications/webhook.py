"""Webhooks: signed, and kept from addresses that are not for them.

The body is signed as in most services that send webhooks: an HMAC-SHA256 over the time and the
body, so that a receiver can tell who sent it, and that it is not an old one. Where a name leads
is checked after it was resolved, on the very addresses that are connected to.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import json
import socket
from collections.abc import Mapping
from typing import Any
from urllib.parse import urljoin, urlsplit

from aiohttp.abc import AbstractResolver
from aiohttp.resolver import DefaultResolver

from asyncflow.errors import DeliveryFailed, InvalidOption, InvalidSignature
from asyncflow.notifications.channels import Channel

#: Redirects that are followed, each checked like the first.
MOST_REDIRECTS = 3
#: Bytes of an answer that are read.
MOST_ANSWER = 4096
#: Seconds that a receiver may ask to wait.
MOST_WAIT = 300.0
_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


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


def is_public(address: str) -> bool:
    """Whether the internet can reach an address; those inside of others count as what they are."""
    try:
        found: Any = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(found, ipaddress.IPv6Address):
        inner = found.ipv4_mapped or found.sixtofour or (found.teredo or (None, None))[1]
        if inner is None and found in _NAT64:
            inner = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
    return bool(found.is_global) and not found.is_multicast


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
            raise OSError(f"{host} leads to an address that is not public")
        return fine

    async def close(self) -> None:
        await self._inner.close()


async def post(
    channel: Channel, message: Mapping[str, Any], event_id: str, now: float, resolver: Any = None
) -> str:
    """Send a message as a webhook; what came of it.

    Args:
        message: plain data.
        event_id: the same for all attempts.
        resolver: of names, for tests.

    Raises:
        DeliveryFailed: it was not taken.
    """
    import aiohttp

    body = json.dumps(message, ensure_ascii=False, default=str).encode()
    stamp = int(now)
    headers = {
        **channel.headers,
        "Content-Type": "application/json",
        "User-Agent": "asyncflow",
        "Asyncflow-Timestamp": str(stamp),
        "Asyncflow-Event-Id": event_id,
    }
    if channel.key is not None:
        headers["Asyncflow-Signature"] = sign(channel.key, stamp, body)
    connector = aiohttp.TCPConnector(
        resolver=None if channel.allow_private else Guard(resolver), force_close=True
    )
    timeout = aiohttp.ClientTimeout(total=channel.timeout_seconds)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout, trust_env=False) as web:
        url = first = channel.target
        for _ in range(MOST_REDIRECTS + 1):
            _check_literal(url, channel)
            try:
                async with web.post(
                    url, data=body, headers=headers, allow_redirects=False
                ) as answer:
                    await answer.content.read(MOST_ANSWER)
                    status, told = answer.status, answer.headers
            except TimeoutError:
                raise DeliveryFailed(f"no answer within {channel.timeout_seconds:g} s") from None
            except (aiohttp.ClientError, OSError) as error:
                # Of refused addresses, too: what a name leads to may change.
                reason = getattr(error, "os_error", None) or error
                text = f"{type(error).__name__}: {getattr(reason, 'strerror', None) or reason}"
                raise DeliveryFailed(text[:300]) from None
            if status not in (301, 302, 303, 307, 308):
                return _judge(status, told)
            target = urljoin(url, told.get("Location", ""))
            if urlsplit(target).scheme != "https" and urlsplit(url).scheme == "https":
                raise DeliveryFailed("it redirects from https to http", final=True)
            if urlsplit(target).netloc != urlsplit(first).netloc:
                # Another receiver: it gets nothing that proves who we are.
                headers.pop("Asyncflow-Signature", None)
                for name in channel.headers:
                    headers.pop(name, None)
            url = target
    raise DeliveryFailed(f"it redirects more than {MOST_REDIRECTS} times", final=True)


def _check_literal(url: str, channel: Channel) -> None:
    """Refuse what is no web address, and addresses that stand in a URL and are not public."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise DeliveryFailed("it redirects to what is no web address", final=True)
    if channel.allow_private:
        return
    host = parts.hostname
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


def _judge(status: int, headers: Mapping[str, str]) -> str:
    if 200 <= status < 300:
        return f"HTTP {status}"
    if status in _AGAIN:
        text = headers.get("Retry-After", "")
        after = min(float(text), MOST_WAIT) if text.isascii() and text.isdigit() else None
        raise DeliveryFailed(f"HTTP {status}", after=after)
    raise DeliveryFailed(f"HTTP {status}", final=True)

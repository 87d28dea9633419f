"""Channels: where messages go, and how many, when, and how often they are tried."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, time
from typing import Any
from urllib.parse import SplitResult, parse_qs, quote, unquote, urlsplit
from zoneinfo import ZoneInfo

from asyncflow.errors import InvalidOption
from asyncflow.notifications import templates
from asyncflow.retry import exponential_backoff

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_MAIL = ("smtp", "smtps")
_WEB = ("http", "https")
MASK = "****"
_DELAYS = exponential_backoff(base=2, max_delay=300)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mail:
    """An SMTP server, and from whom to whom."""

    host: str
    port: int
    tls: bool  #: from the first byte; else STARTTLS where the server has it
    user: str | None
    password: str | None
    sender: str
    to: tuple[str, ...]


@dataclass(frozen=True)
class Channel:
    """Where messages go. It lives in the process that declares it; only its name is stored.

    Args:
        name: what automations call it: small letters, digits, - and _.
        url: ``smtp://user:password@host:port/?from=a@b.c&to=d@e.f`` (smtps:// for TLS from the
            first byte), ``https://...`` for a signed webhook, or a URL of Apprise, such as
            ``slack://...`` or ``mailto://...``. ``env:NAME`` is read from the environment when
            it is used, so that no secret stands in code.
        secret: signs webhooks; ``env:NAME`` as well.
        subject, body: templates of messages; by default what there is to say.
        retries: how often a message is tried again.
        retry_delay_seconds: seconds before each, a list of them, or `exponential_backoff`.
        rate_limit: so many messages within so many seconds; what is beyond waits.
        digest_seconds: what comes within so many seconds of the first goes as one message.
        quiet: from when to when nothing is sent, and in which zone, such as ``("22:00", "07:00",
            "Europe/Berlin")``; what comes meanwhile waits.
        allow_private: lets webhooks go to addresses that the internet cannot reach.
        headers: of webhooks, beside ours.
        timeout_seconds: for one attempt.

    Raises:
        InvalidOption, TemplateError: something makes no sense; no secret is in the message.
    """

    name: str
    url: str = field(repr=False)
    secret: str | None = field(default=None, repr=False)
    subject: str | None = None
    body: str | None = None
    retries: int = 5
    retry_delay_seconds: Any = _DELAYS
    rate_limit: tuple[int, float] | None = None
    digest_seconds: float | None = None
    quiet: tuple[str, str, str] | None = None
    allow_private: bool = False
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    timeout_seconds: float = 30.0

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            raise InvalidOption(
                f"channel name {self.name!r}: give small letters, digits, - and _, at most 64"
            )
        if not isinstance(self.url, str):
            raise self._bad("url", "give a text")
        if not self.url.startswith("env:"):
            self._check(self.url)
        for name in ("subject", "body"):
            text = getattr(self, name)
            if text is not None:
                templates.check(text)
        if not isinstance(self.retries, int) or not 0 <= self.retries <= 100:
            raise self._bad("retries", f"{self.retries!r}: give 0 to 100")
        self.wait(1)
        self._check_policy()
        for name, value in self.headers.items():
            if not re.fullmatch(r"[A-Za-z0-9-]{1,100}", name) or re.search(r"[\r\n\0]", value):
                raise self._bad("headers", f"{name!r} is no header")

    def _check_policy(self) -> None:
        rate = self.rate_limit
        if rate is not None and not (
            isinstance(rate, tuple) and len(rate) == 2 and rate[0] >= 1 and rate[1] > 0
        ):
            raise self._bad("rate_limit", f"{rate!r}: give (messages, seconds), such as (10, 60)")
        if self.digest_seconds is not None and not 0 < self.digest_seconds <= 86_400:
            raise self._bad("digest_seconds", f"{self.digest_seconds!r}: give seconds up to a day")
        if self.quiet is not None:
            try:
                begin, end, zone = self.quiet
                ends = time.fromisoformat(begin), time.fromisoformat(end)
                ZoneInfo(zone)
            except (TypeError, ValueError, KeyError, OSError):
                raise self._bad(
                    "quiet", f"{self.quiet!r}: give ('22:00', '07:00', 'Europe/Berlin')"
                ) from None
            if ends[0] == ends[1]:
                raise self._bad("quiet", "its begin is its end: it would never send")

    def _bad(self, name: str, text: str) -> InvalidOption:
        return InvalidOption(f"channel {self.name!r}: {name}: {text}")

    def _check(self, url: str) -> None:
        parts = self._split(url)
        if parts.scheme in _MAIL:
            self._mail(parts)
        elif parts.scheme in _WEB:
            if not parts.hostname:
                raise self._bad("url", "the webhook has no host")
            if parts.username is not None:
                raise self._bad(
                    "url", "a webhook takes no user in its URL: use headers= or secret="
                )
        elif not re.fullmatch(r"[a-z][a-z0-9+.-]*", parts.scheme) or "://" not in url:
            raise self._bad(
                "url", "it does not parse: give smtp://..., https://... or a URL of Apprise"
            )

    def _split(self, url: str) -> SplitResult:
        try:
            parts = urlsplit(url)
            _ = parts.port
        except ValueError:
            # What the error says may hold a secret.
            raise self._bad("url", "it does not parse: its host or port is wrong") from None
        return parts

    def _mail(self, parts: SplitResult) -> Mail:
        query = parse_qs(parts.query)
        sender, to = query.get("from", [""])[0], ",".join(query.get("to", []))
        people = tuple(one.strip() for one in to.split(",") if one.strip())
        for one in (sender, *people):
            if not re.fullmatch(r"[^@\s<>,;\x00-\x1f]+@[^@\s<>,;\x00-\x1f]+", one):
                raise self._bad("url", "say from whom and to whom: ?from=a@b.c&to=d@e.f")
        if not people or not parts.hostname:
            raise self._bad("url", "give smtp://host:port/?from=a@b.c&to=d@e.f")
        tls = parts.scheme == "smtps"
        return Mail(
            host=parts.hostname,
            port=parts.port or (465 if tls else 25 if parts.username is None else 587),
            tls=tls,
            user=unquote(parts.username) if parts.username else None,
            password=unquote(parts.password) if parts.password else None,
            sender=sender,
            to=people,
        )

    # --- in use ---------------------------------------------------------------------------------

    @property
    def target(self) -> str:
        """The URL, read from the environment where it stands there.

        Raises:
            InvalidOption: it does not stand there, or does not parse.
        """
        if not self.url.startswith("env:"):
            return self.url
        found = _environment(self.url, self._bad, "url")
        self._check(found)
        return found

    @property
    def key(self) -> str | None:
        """The secret, read from the environment where it stands there."""
        if self.secret is None or not self.secret.startswith("env:"):
            return self.secret
        return _environment(self.secret, self._bad, "secret")

    @property
    def kind(self) -> str:
        """ "mail", "webhook" or "service"."""
        scheme = urlsplit(self.target).scheme
        return "mail" if scheme in _MAIL else "webhook" if scheme in _WEB else "service"

    @property
    def mail(self) -> Mail:
        return self._mail(self._split(self.target))

    @property
    def masked_url(self) -> str:
        """The URL for people: what may be a secret is not in it."""
        if self.url.startswith("env:"):
            return self.url
        parts = urlsplit(self.url)
        if parts.scheme not in (*_MAIL, *_WEB):
            return f"{parts.scheme}://{MASK}"
        host = parts.hostname or ""
        port = f":{parts.port}" if parts.port else ""
        user = f"{quote(unquote(parts.username))}:{MASK}@" if parts.username else ""
        path = (
            parts.path if parts.scheme in _MAIL else (f"/{MASK}" if parts.path.strip("/") else "")
        )
        return f"{parts.scheme}://{user}{host}{port}{path}"

    def __str__(self) -> str:
        return f"{self.name} ({self.masked_url})"

    def wait(self, attempt: int) -> float:
        """Seconds from the n-th failed attempt to the next one."""
        delay: Any = self.retry_delay_seconds
        try:
            if callable(delay):
                answer: Any = delay(attempt)
                found = float(answer)
            elif isinstance(delay, list | tuple):
                found = float(delay[min(attempt, len(delay)) - 1])
            else:
                found = float(delay)
        except (TypeError, ValueError, IndexError):
            found = -1.0
        if not 0 <= found <= 86_400:
            raise self._bad("retry_delay_seconds", f"{delay!r}: give seconds, or a list of them")
        return found

    def quiet_until(self, now: float) -> float | None:
        """When the quiet time that it is now ends; None: it is none."""
        if self.quiet is None:
            return None
        zone = ZoneInfo(self.quiet[2])
        begin, end = time.fromisoformat(self.quiet[0]), time.fromisoformat(self.quiet[1])
        local = datetime.fromtimestamp(now, zone)
        clock = local.time().replace(tzinfo=None)
        inside = begin <= clock < end if begin < end else clock >= begin or clock < end
        if not inside:
            return None
        from datetime import timedelta

        day = local.date() if clock < end else local.date() + timedelta(days=1)
        until = datetime.combine(day, end, zone).timestamp()
        # On the night that has an hour twice or not at all it may be behind us already.
        return until if until > now else now + 60.0


def _environment(text: str, bad: Any, name: str) -> str:
    variable = text.removeprefix("env:")
    found = os.environ.get(variable)
    if not found:
        raise bad(name, f"the environment variable {variable!r} is not set")
    return found

"""Channels: where messages go, and how many, when, and how often they are tried."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta
from math import isfinite
from typing import Any
from urllib.parse import SplitResult, parse_qs, quote, unquote, urlsplit
from zoneinfo import ZoneInfo

from asyncflow.errors import InvalidOption
from asyncflow.masking import Masker
from asyncflow.notifications import templates
from asyncflow.retry import exponential_backoff

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_MAIL = ("smtp", "smtps")
_WEB = ("http", "https")
MASK = "****"
#: An outage of an hour loses no message.
_DELAYS = exponential_backoff(base=10, factor=4, max_delay=3600)
#: Headers of webhooks that are ours, or the connection's.
_OURS = frozenset({
    "asyncflow-event-id", "asyncflow-signature", "asyncflow-timestamp", "connection",
    "content-encoding", "content-length", "content-type", "expect", "host", "te", "trailer",
    "transfer-encoding", "upgrade",
})  # fmt: skip


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
            it is used, so that no secret stands in code. A ``SecretStr`` is taken, too.
        secret: signs webhooks; ``env:NAME`` or a ``SecretStr`` as well.
        subject, body: templates of messages; by default what there is to say.
        retries: how often a message is tried again.
        retry_delay_seconds: seconds before each, a list of them, or `exponential_backoff`; by
            default 10, 40, 160, 640 and 2,560.
        rate_limit: so many messages within so many seconds; what is beyond waits.
        digest_seconds: what comes within so many seconds of the first goes as one message.
        quiet: from when to when nothing is sent, and in which zone, such as ``("22:00", "07:00",
            "Europe/Berlin")``; what comes meanwhile waits.
        allow_private: lets webhooks, and the services of Apprise that are such, go to addresses
            that the internet cannot reach.
        headers: of webhooks, beside ours.
        timeout_seconds: for one attempt.

    Raises:
        InvalidOption, TemplateError: something makes no sense; no secret is in the message.
        MissingExtra: what it needs is not installed.
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
    headers: Mapping[str, str] = field(default_factory=dict, repr=False, hash=False)
    timeout_seconds: float = 30.0

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            # A URL in the wrong place is not shown.
            shown = "" if "://" in str(self.name) else f" {str(self.name)[:64]!r}"
            raise InvalidOption(
                f"channel name{shown}: give small letters, digits, - and _, at most 64"
            )
        for name in ("url", "secret"):
            object.__setattr__(self, name, _revealed(getattr(self, name)))
        if not isinstance(self.url, str):
            raise self._bad("url", "give a text")
        if self.secret is not None and (not isinstance(self.secret, str) or not self.secret):
            raise self._bad("secret", "give a text that is not empty")
        for name in ("url", "secret"):
            text = getattr(self, name) or ""
            if text.startswith("env:") and not re.fullmatch(r"env:[A-Za-z_]\w*", text, re.ASCII):
                raise self._bad(name, "give env: and the name of an environment variable")
        if not self.url.startswith("env:"):
            self._check(self.url)
        for name in ("subject", "body"):
            text = getattr(self, name)
            if text is not None:
                templates.check(text)
        if not _is_count(self.retries, 0, 100):
            raise self._bad("retries", f"{self.retries!r}: give 0 to 100")
        if not _is_number(self.timeout_seconds) or not 0 < self.timeout_seconds <= 600:
            raise self._bad("timeout_seconds", f"{self.timeout_seconds!r}: give seconds up to 600")
        self.wait(1)
        self._check_policy()
        self._check_headers()

    def _check_headers(self) -> None:
        if not isinstance(self.headers, Mapping):
            raise self._bad("headers", "give a mapping of names to texts")
        headers = {name: _revealed(value) for name, value in self.headers.items()}
        for name, value in headers.items():
            if (
                not isinstance(name, str)
                or not isinstance(value, str)
                or not re.fullmatch(r"[A-Za-z0-9_-]{1,100}", name)
                or re.search(r"[\x00-\x08\x0a-\x1f\x7f\ud800-\udfff]", value)
            ):
                raise self._bad("headers", f"{str(name)[:100]!r} is no header")
            if name.lower() in _OURS:
                raise self._bad("headers", f"{name!r} is set by asyncflow")
        object.__setattr__(self, "headers", headers)

    def _check_policy(self) -> None:
        rate = self.rate_limit
        if rate is not None and not (
            isinstance(rate, tuple)
            and len(rate) == 2
            and _is_count(rate[0], 1, 1_000_000)
            and _is_number(rate[1])
            and 0 < rate[1] <= 86_400
        ):
            raise self._bad("rate_limit", f"{rate!r}: give (messages, seconds), such as (10, 60)")
        digest = self.digest_seconds
        if digest is not None and not (_is_number(digest) and 0 < digest <= 86_400):
            raise self._bad("digest_seconds", f"{digest!r}: give seconds up to a day")
        if self.quiet is not None:
            try:
                begin, end, zone = self.quiet
                ends = time.fromisoformat(begin), time.fromisoformat(end)
                ZoneInfo(zone)
                if any(one.tzinfo is not None for one in ends):
                    raise ValueError
            except (TypeError, ValueError, KeyError, OSError, AttributeError):
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
            self._check_web(url, parts)
        elif not re.fullmatch(r"[a-z][a-z0-9+.-]*", parts.scheme) or "://" not in url:
            raise self._bad(
                "url", "it does not parse: give smtp://..., https://... or a URL of Apprise"
            )
        else:
            from asyncflow.notifications.services import is_known

            if not is_known(url, f"the channel {self.name!r}"):
                raise self._bad(
                    "url",
                    f"it does not parse: Apprise knows no such URL of {parts.scheme[:30]}://",
                )

    def _check_web(self, url: str, parts: SplitResult) -> None:
        if not parts.hostname:
            raise self._bad("url", "the webhook has no host")
        if "@" in parts.netloc:
            raise self._bad("url", "a webhook takes no user in its URL: use headers= or secret=")
        from yarl import URL  # as aiohttp reads it

        try:
            host = URL(url).raw_host or ""
        except ValueError:
            host = ""
        if not re.fullmatch(r"[A-Za-z0-9._:%-]+", host) or re.search(r"[\x00-\x20]", url):
            raise self._bad("url", "it does not parse: its host or port is wrong")

    def _split(self, url: str) -> SplitResult:
        try:
            parts = urlsplit(url)
            _ = parts.port, parts.hostname
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

    def mask(self, text: str) -> str:
        """A text that is stored or shown, without what of this channel is secret."""
        masker = Masker()
        for one in self._secrets():
            masker.add(one)
        return masker.text(text)

    def _secrets(self) -> Iterator[str]:
        try:
            url, key = self.target, self.key
        except InvalidOption:
            return
        if key is not None:
            yield key
        for value in self.headers.values():
            yield from (value, value.rpartition(" ")[2])
        parts = urlsplit(url)
        if parts.password:
            yield from (parts.password, unquote(parts.password))
        if parts.scheme in _MAIL:
            return
        rest = url.partition("://")[2]
        if parts.scheme in _WEB:
            rest = rest[len(parts.netloc) :]
        yield rest.strip("/")
        host = parts.hostname or ""
        # Short ones are words like "hook" or "api"; with services the host may be a token.
        for one in re.split(r"[/?&=@:#]", rest):
            if len(one) >= 8 and not ("." in host and one.lower() == host):
                yield from (one, unquote(one))

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
        over = timedelta(days=begin > end)
        today = datetime.fromtimestamp(now, zone).date()
        at, until = now, None
        # Those of yesterday and today, and what follows where the clocks leave nothing between.
        for day in (today + timedelta(days=n) for n in (-1, 0, 1)):
            ends = _instant(day + over, end, zone)
            if _instant(day, begin, zone) <= at < ends:
                at = until = ends
        return until


def _instant(day: date, clock: time, zone: ZoneInfo) -> float:
    """When a clock of the zone shows this: for the first time, or where it jumps over it, then."""
    moment = datetime.combine(day, clock, zone)
    at = moment.timestamp()
    shown = datetime.fromtimestamp(at, zone)
    if shown.replace(tzinfo=None) == moment.replace(tzinfo=None):
        return at
    # The jump is between the two readings of a time that does not exist.
    low, high = int(moment.replace(fold=1).timestamp()) - 1, int(at) + 1
    before = datetime.fromtimestamp(low, zone).utcoffset()
    while high - low > 1:
        middle = (low + high) // 2
        if datetime.fromtimestamp(middle, zone).utcoffset() == before:
            low = middle
        else:
            high = middle
    return float(high)


def _revealed(value: Any) -> Any:
    """The text in a SecretStr of pydantic; anything else as it is."""
    reveal = getattr(value, "get_secret_value", None)
    return reveal() if callable(reveal) else value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)


def _is_count(value: Any, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _environment(text: str, bad: Any, name: str) -> str:
    variable = text.removeprefix("env:")
    found = os.environ.get(variable)
    if not found:
        raise bad(name, f"the environment variable {variable!r} is not set")
    return found

"""When a failed attempt is tried again, and after how long.

A policy only answers; it never sleeps, reads no clock and never calls the task.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from math import inf, isfinite
from random import Random
from typing import Any, TypeAlias

from asyncflow.errors import (
    AsyncflowError,
    InvalidOption,
    RetryAfter,
    RollbackIncomplete,
    RunTaken,
    StoreError,
    UpstreamFailed,
)
from asyncflow.failures import told

#: The longest delay that a server may ask for, in seconds; above it the call fails at once.
RETRY_AFTER_CAP = 300.0

Delays: TypeAlias = "float | Sequence[float] | Callable[[int], float]"

#: What no retry can mend: asyncflow's own verdicts, and what a person has to look at.
_NEVER = (UpstreamFailed, StoreError, RunTaken, RollbackIncomplete)


@dataclass(frozen=True, slots=True)
class exponential_backoff:  # noqa: N801 - used as a function; a class so that it prints its values
    """Delays that grow from *base* by *factor* each time, up to *max_delay*.

    Args:
        base: the first delay, in seconds.
        factor: what each delay is multiplied by to give the next.
        max_delay: the longest delay, in seconds.
    """

    base: float = 1.0
    factor: float = 2.0
    max_delay: float = inf

    def __post_init__(self) -> None:
        if self.base < 0 or self.factor < 1 or self.max_delay < 0:
            raise InvalidOption(
                "exponential_backoff takes base >= 0, factor >= 1 and max_delay >= 0,"
                f" not base={self.base!r}, factor={self.factor!r}, max_delay={self.max_delay!r}"
            )

    def __call__(self, attempt: int) -> float:
        """Seconds to wait after *attempt* (from 1)."""
        try:
            return min(self.max_delay, self.base * self.factor ** (attempt - 1))
        except OverflowError:
            return self.max_delay


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """How often and when one call is tried again.

    Attributes:
        retries: how many failed attempts are followed by another; 0 for none.
        delays: seconds to wait: a number, a sequence whose last repeats, or a function of the
            attempt that failed (from 1).
        jitter: the share of a delay that is left to chance: 1 waits between 0 and the delay
            ("full jitter", Brooker, "Exponential Backoff and Jitter", 2015), 0 exactly the
            delay; above 1 up to jitter x delay.
        on: the exception types that are tried again.
    """

    retries: int = 0
    delays: Delays = 0.0
    jitter: float = 1.0
    on: tuple[type[BaseException], ...] = (Exception,)

    def __post_init__(self) -> None:
        if isinstance(self.retries, bool) or not isinstance(self.retries, int) or self.retries < 0:
            raise InvalidOption(f"retries={self.retries!r}: give the number of retries, 0 for none")
        if not _is_delay(self.jitter):
            raise InvalidOption(
                f"retry_jitter_factor={self.jitter!r}: give a factor of 0 (no jitter) or more"
            )
        if not callable(self.delays):
            many = self.delays if isinstance(self.delays, Sequence) else (self.delays,)
            if not many or not all(_is_delay(d) for d in many):
                raise InvalidOption(
                    f"retry_delay_seconds={self.delays!r}: give seconds >= 0, a list of them,"
                    " or exponential_backoff(...)"
                )

    def answers(self, failures: int, error: BaseException) -> bool:
        """Whether *error*, the *failures*-th of this call, may be followed by an attempt."""
        return (
            failures <= self.retries
            and isinstance(error, self.on)
            and isinstance(error, Exception)
            and not isinstance(error, _NEVER)
        )

    def delay(self, failures: int, error: BaseException, now: float, rng: Random) -> float | None:
        """Seconds to wait after the *failures*-th failure; None when a server asks too much.

        Args:
            now: the wall clock, seconds since the epoch, against which dates are judged.
        """
        asked = asked_delay(error, now)
        if asked is not None and asked > RETRY_AFTER_CAP:
            return None
        wait = self._base(failures)
        if self.jitter:
            wait = rng.uniform(wait * max(0.0, 1 - self.jitter), wait * max(1.0, self.jitter))
        if asked is None:
            return wait
        # Never earlier than asked, and not all at the same instant.
        spread = min(1.0, asked * 0.1) if self.jitter else 0.0
        return max(wait, asked + rng.uniform(0.0, spread))

    def wait(
        self, failures: int, error: BaseException, now: float, deadline: float | None, rng: Random
    ) -> float | str:
        """As `delay`, judged: a string says why there is no other attempt.

        Args:
            deadline: seconds since the epoch at which an attempt must have begun, or None.
        """
        try:
            wait = self.delay(failures, error, now, rng)
        except Exception as raised:
            return f"its retry_delay_seconds raised {told(raised, 200)}, so no retry"
        if wait is None:
            return (
                f"the server asked to wait {asked_delay(error, now):g} s, longer than the"
                f" {RETRY_AFTER_CAP:g} s that are allowed"
            )
        if deadline is not None and now + wait >= deadline:
            return "the next attempt would begin after its deadline"
        return wait

    def _base(self, failures: int) -> float:
        delays = self.delays
        if callable(delays):
            wait = float(delays(failures))
        elif isinstance(delays, Sequence):
            wait = float(delays[min(failures, len(delays)) - 1])
        else:
            wait = float(delays)
        return max(0.0, wait)


def _is_delay(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and value >= 0 and isfinite(value)


def asked_delay(error: BaseException, now: float) -> float | None:
    """The delay that a server asked for through *error*, in seconds, or None.

    It is read from `RetryAfter`, or from a ``Retry-After`` header (RFC 9110, 10.2.3: seconds or
    a date) of anything that carries ``headers``, such as `aiohttp.ClientResponseError`, or
    ``response.headers``, such as the errors of httpx and requests.
    """
    if isinstance(error, RetryAfter):
        return error.seconds
    if isinstance(error, AsyncflowError):
        return None
    for holder in (error, _quietly(error, "response")):
        headers = _quietly(holder, "headers")
        if headers is None:
            continue
        try:
            text = headers.get("Retry-After")
        except Exception:
            text = None  # headers of a kind that we do not know
        if isinstance(text, str):
            return parse_retry_after(text, now)
    return None


def _quietly(owner: object, name: str) -> Any:
    """An attribute; None where there is none, or asking for it fails (as httpx does)."""
    try:
        return getattr(owner, name, None)
    except Exception:
        return None


def parse_retry_after(text: str, now: float) -> float | None:
    """Seconds from a ``Retry-After`` value; None when it is neither a number nor a date."""
    text = text.strip()
    try:
        seconds = float(text)
    except ValueError:
        try:
            when: datetime = parsedate_to_datetime(text)
        except (ValueError, TypeError, IndexError):
            return None
        return max(0.0, when.timestamp() - now)
    return max(0.0, seconds) if isfinite(seconds) else None


def shown_seconds(seconds: float) -> str:
    """How long somebody waits, for people."""
    return f"{seconds:,.0f} s" if seconds >= 100 else f"{seconds:.3g} s"

"""Keeps known secret values out of everything that is stored as text."""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any
from urllib.parse import quote, quote_plus

MASK = "**********"

#: Shorter values would blot out ordinary text.
SHORTEST = 4


def secrets_in(value: Any) -> Iterator[Any]:
    """All of pydantic's SecretStr and SecretBytes inside a value, at any depth."""
    pydantic = sys.modules.get("pydantic")
    if pydantic is None:
        return  # then nothing can be one
    secret = (pydantic.SecretStr, pydantic.SecretBytes)
    seen: set[int] = set()
    open_ = [value]
    while open_:
        one = open_.pop()
        if isinstance(one, _PLAIN) or one is None:
            continue
        if isinstance(one, secret):
            yield one
            continue
        if id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, dict):
            open_ += one.values()
        elif isinstance(one, list | tuple | set | frozenset):
            open_ += one
        elif isinstance(one, pydantic.BaseModel):
            open_ += vars(one).values()
        elif is_dataclass(one) and not isinstance(one, type):
            open_ += [getattr(one, field.name, None) for field in fields(one)]


_PLAIN = (str, bytes, int, float)


class Masker:
    """The secrets of one engine."""

    def __init__(self) -> None:
        self._texts: tuple[str, ...] = ()
        self._data: tuple[bytes, ...] = ()
        self._forms: tuple[bytes, ...] = ()

    def add(self, secret: str) -> None:
        """Mask this value from now on."""
        if len(secret) < SHORTEST or secret in self._texts:
            return
        # The longer first, so that a secret inside another leaves no rest of it.
        self._texts = tuple(
            sorted({*self._texts, secret, *_encoded(secret)}, key=len, reverse=True)
        )
        forms = {json.dumps(t)[1:-1] for t in self._texts}
        forms |= {json.dumps(t, ensure_ascii=False)[1:-1] for t in self._texts}
        self._data = tuple(
            sorted((f.encode("utf-8", "surrogatepass") for f in forms), key=len, reverse=True)
        )
        raw = (text.encode("utf-8", "surrogatepass") for text in self._texts)
        self._forms = tuple(dict.fromkeys((*raw, *self._data)))

    @property
    def active(self) -> bool:
        """Whether any secret is known."""
        return bool(self._texts)

    def learn(self, values: dict[str, Any]) -> None:
        """Take note of the secrets (pydantic's SecretStr and SecretBytes) among parameters."""
        for secret in secrets_in(values):
            found = secret.get_secret_value()
            self.add(found if isinstance(found, str) else found.decode("utf-8", "replace"))

    def holds(self, data: bytes) -> bool:
        """Whether a secret stands in these bytes, as it is or as in JSON."""
        for form in self._forms:  # noqa: SIM110 - half the time, and every call comes through here
            if form in data:
                return True
        return False

    def text(self, text: str) -> str:
        for secret in self._texts:
            text = text.replace(secret, MASK)
        return text

    def data(self, data: bytes) -> bytes:
        """Masked JSON."""
        for secret in self._data:
            data = data.replace(secret, MASK.encode())
        return data


def _encoded(secret: str) -> set[str]:
    """The other forms in which a secret gets into URLs and headers."""
    raw = secret.encode("utf-8", "surrogatepass")
    whole = base64.b64encode(raw).decode()
    urls = {quote(raw), quote(raw, safe=""), quote_plus(raw)}
    # The padding, and the last letter that depends on what follows, may be missing.
    return {form for form in {*urls, whole, whole.rstrip("=")} if len(form) >= SHORTEST}

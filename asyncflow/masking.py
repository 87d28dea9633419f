"""Keeps known secret values out of everything that is stored as text."""

from __future__ import annotations

import base64
import json
import sys
from typing import Any
from urllib.parse import quote, quote_plus

MASK = "**********"

#: Shorter values would blot out ordinary text.
SHORTEST = 4


class Masker:
    """The secrets of one engine."""

    def __init__(self) -> None:
        self._texts: tuple[str, ...] = ()
        self._data: tuple[bytes, ...] = ()

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

    def learn(self, values: dict[str, Any]) -> None:
        """Take note of the secrets (pydantic's SecretStr and SecretBytes) among parameters."""
        pydantic = sys.modules.get("pydantic")
        if pydantic is None:
            return
        for value in values.values():
            if isinstance(value, pydantic.SecretStr):
                self.add(value.get_secret_value())
            elif isinstance(value, pydantic.SecretBytes):
                self.add(value.get_secret_value().decode("utf-8", "replace"))
            elif isinstance(value, pydantic.BaseModel):
                self.learn(dict(value.__dict__))

    def holds(self, data: bytes) -> bool:
        """Whether a secret stands in these bytes."""
        return any(text.encode("utf-8", "surrogatepass") in data for text in self._texts)

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

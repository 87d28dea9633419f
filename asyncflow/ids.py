"""Ids that people see: UUIDs of version 7 (RFC 9562, 5.7), one for a run, none for a call."""

from __future__ import annotations

import os
import uuid


def new_run_id(now: float) -> str:
    """An id that sorts by time: 48 bits of milliseconds, then chance.

    Args:
        now: seconds since the epoch.
    """
    millis = int(now * 1000) & ((1 << 48) - 1)
    chance = int.from_bytes(os.urandom(10), "big")
    value = (millis << 80) | chance
    value &= ~(0xF << 76) & ~(0x3 << 62)
    value |= (0x7 << 76) | (0x2 << 62)
    return str(uuid.UUID(int=value))

"""How code in a worker process reaches its run, which is in another process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

#: In a worker, sends a message to the process of the engine; elsewhere None.
SEND: Callable[[Any], None] | None = None

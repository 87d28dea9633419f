"""What happens, as it happens: one stream of events for each page that is open.

One reader looks for all; each page has a short queue. A page that does not keep up loses what
is in between and is told so; nobody waits for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import Any

from aiohttp import web

from asyncflow.server.api import Api, events_json
from asyncflow.server.security import Problem
from asyncflow.store.base import EventQuery

#: Seconds between two looks, and so between two messages to a page.
EVERY = 1.0
#: Seconds after which a page hears something though nothing happened.
ALIVE = 20.0
#: Messages that may wait for a page, and pages that may be open.
MOST_WAITING = 20
MOST_PAGES = 100
#: Events in one message.
MOST_EVENTS = 200


class Live:
    """The streams of one application."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._pages: set[asyncio.Queue[dict[str, Any] | None]] = set()
        self._task: asyncio.Task[None] | None = None
        self._after = 0

    async def stream(self, request: web.Request) -> web.StreamResponse:
        """Server-sent events, until the page is closed."""
        if len(self._pages) >= MOST_PAGES:
            raise Problem(503, f"{MOST_PAGES} pages are open already: close some")
        for name in request.query:
            raise Problem(422, f"this path takes no parameter {name[:50]!r}")
        last = request.headers.get("Last-Event-ID", "")
        answer = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        answer.headers["Cache-Control"] = "no-store"
        answer.headers["X-Accel-Buffering"] = "no"
        queue: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue(MOST_WAITING)
        self._pages.add(queue)
        try:
            if self._task is None or self._task.done():
                self._after = await self._newest()
                self._task = asyncio.get_running_loop().create_task(
                    self._look(), name="asyncflow-live"
                )
            await answer.prepare(request)
            await answer.write(b"retry: 2000\n\n")
            if last.isascii() and last.isdigit() and len(last) <= 18:
                missed = await self._since(int(last))
                if missed is not None:
                    await answer.write(_message(missed))
            while True:
                try:
                    message = await asyncio.wait_for(queue.get(), ALIVE)
                except TimeoutError:
                    await answer.write(b": still here\n\n")
                    continue
                if message is None:
                    break
                await answer.write(_message(message))
        except (ConnectionResetError, asyncio.CancelledError):
            pass  # the page was closed
        finally:
            self._pages.discard(queue)
        return answer

    async def _newest(self) -> int:
        page = await self._api.reader.events(EventQuery(newest=True, limit=1))
        return page.rows[0].id if page.rows else 0

    async def _since(self, after: int) -> dict[str, Any] | None:
        page = await self._api.reader.events(EventQuery(after=after, limit=MOST_EVENTS))
        if not page.rows:
            return None
        return {
            "id": page.rows[-1].id,
            "events": await events_json(self._api, page.rows),
            "more": page.next_cursor is not None,
        }

    async def _look(self) -> None:
        while self._pages:
            await asyncio.sleep(EVERY)
            with contextlib.suppress(Exception):
                found = await self._since(self._after)
                if found is None:
                    continue
                self._after = found["id"]
                if found["more"]:
                    # Nobody reads thousands of lines: go on with what is newest.
                    self._after = max(self._after, await self._newest())
                for queue in list(self._pages):
                    if queue.full():
                        queue.get_nowait()
                        found = {**found, "more": True}
                    queue.put_nowait(found)

    async def aclose(self) -> None:
        for queue in list(self._pages):
            with contextlib.suppress(asyncio.QueueFull):
                queue.put_nowait(None)
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task


def _message(message: dict[str, Any]) -> bytes:
    data = json.dumps(
        {"events": message["events"], "more": message["more"]}, default=str, ensure_ascii=False
    )
    return f"id: {message['id']}\nevent: change\ndata: {data}\n\n".encode()

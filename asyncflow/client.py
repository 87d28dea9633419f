"""A client of the REST API: what a server knows and does, from another process or machine.

    async with Client("http://127.0.0.1:4200/#token=...") as client:
        async for run in client.runs(state="failed"):
            print(run.id, run.message)

Results are the models of `asyncflow.server.models`. Errors are those that the engine itself
raises, such as `UnknownRun`; else `ServerError`, `ServerUnreachable` and `ServerTimeout`.
"""

from __future__ import annotations

import asyncio
import re
import ssl
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterable, Mapping
from datetime import datetime
from math import inf
from types import TracebackType
from typing import Any, Generic, Literal, TypeVar, cast
from urllib.parse import quote

from pydantic import BaseModel, ValidationError

from asyncflow._version import __version__
from asyncflow.errors import (
    AsyncflowError,
    CommandFailed,
    InvalidOption,
    InvalidParameters,
    ServerError,
    ServerTimeout,
    ServerUnreachable,
)
from asyncflow.server import models
from asyncflow.states import StateType
from asyncflow.transport import Transport, address

T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)

_ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
#: Seconds between two looks at what is waited for: the first, and the longest.
FIRST_LOOK, LAST_LOOK = 0.2, 2.0
#: Seconds without a server after which `Client.stream` gives up.
PATIENCE = 300.0
#: Seconds that a stream must last for its server not to count as away.
SOUND = 10.0
#: Seconds for which an engine is waited for that a server without code asks for something.
MOST_ASKED = 90.0
#: Events in one answer, while a stream is caught up with.
_EVENTS = 500
#: What an answer says that none of the server's own routes gives.
_NO_SUCH_PATH = (404, 405, 422)


class Pages(Generic[T]):
    """A listing: awaited, it is one page; in `async for`, all items, page after page."""

    def __init__(
        self, ask: Callable[[str | None], Awaitable[models.Page[T]]], cursor: str | None
    ) -> None:
        self._ask = ask
        self._cursor = cursor

    def __await__(self) -> Generator[Any, Any, models.Page[T]]:
        return self._ask(self._cursor).__await__()

    async def __aiter__(self) -> AsyncGenerator[T, None]:
        cursor = self._cursor
        while True:
            page = await self._ask(cursor)
            for item in page.items:
                yield item
            if page.next_cursor is None or page.next_cursor == cursor:
                return
            cursor = page.next_cursor


class Client:
    """A server of asyncflow. Use it in `async with`.

    Args:
        url: where it is, as it prints it when it starts: ``http://127.0.0.1:4200/#token=...``, or
            https, or under a path; by default $ASYNCFLOW_SERVER.
        token: by default the one in the URL, else $ASYNCFLOW_TOKEN, which is sent to no other
            server than that of $ASYNCFLOW_SERVER.
        timeout: seconds that one answer may take.
        retries: how often a question is asked again to which no answer came; what changes
            something is, too, where a key keeps it from being done twice.
        allow_http: whether the token may go to another machine without TLS; by default
            $ASYNCFLOW_ALLOW_HTTP, else not.
        ssl: a context for https, where the usual one does not do.

    Raises:
        InvalidOption: there is no URL, it makes no sense, or the token would go unencrypted.

    Each method raises `ServerUnreachable` or `ServerTimeout` where no answer comes, and
    `ServerError` where it is none of ours. What a server without code of yours has to ask an engine
    for is waited for; `CommandFailed` says why it was not done.
    """

    def __init__(
        self,
        url: str | None = None,
        token: str | None = None,
        *,
        timeout: float = 30.0,
        retries: int = 2,
        allow_http: bool | None = None,
        ssl: ssl.SSLContext | None = None,
    ) -> None:
        if not timeout > 0 or retries < 0:
            raise InvalidOption("a client needs a timeout above 0, and 0 or more retries")
        self._transport = Transport(address(url, token, allow_http), timeout, retries, ssl)

    @property
    def url(self) -> str:
        """Where the server is; without the token."""
        return self._transport.base

    def __repr__(self) -> str:
        return f"Client({self.url!r})"

    async def __aenter__(self) -> Client:
        await self._transport.open()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._transport.aclose()

    # --- the server -------------------------------------------------------------------------------

    async def health(self) -> models.Health:
        """Whether it is there. This needs no token."""
        return await self._get("/health", models.Health)

    async def me(self) -> models.Role:
        """What the token may do, and the version of the server."""
        return await self._get("/me", models.Role)

    async def summary(self, hours: int = 24) -> models.Summary:
        """What there is to know at a glance.

        Args:
            hours: how far back runs are counted.
        """
        return await self._get("/summary", models.Summary, _asked(models.SummaryQuery, hours=hours))

    # --- runs -------------------------------------------------------------------------------------

    def runs(
        self,
        *,
        state: str | Iterable[str] = (),
        flow: str | None = None,
        tags: str | Iterable[str] = (),
        deployment: str | None = None,
        since: datetime | None = None,
        parent: str = "roots",
        id: str = "",  # noqa: A002 - the name that the API has
        text: str = "",
        full: bool = False,
        limit: int = 50,
        cursor: str | None = None,
    ) -> Pages[models.Run]:
        """Runs, newest first: ``await client.runs()`` for a page, ``async for`` for all.

        Args:
            state: types (``failed``) or names (``TimedOut``) of states; or "not_completed"; or
                "attention": those that wait for a person, or that no engine has.
            tags: all of them must be there.
            since: created from then on.
            parent: "roots", "any", or the id of a run for its child runs.
            id: the beginning of an id.
            text: somewhere in the name, the flow's name or the message.
            full: with parameters and errors.
            limit: runs on a page, 500 at most.
        """
        query = _asked(
            models.RunQuery,
            state=_some(state), flow=flow, tag=_some(tags), deployment=deployment, since=since,
            parent=parent, id=id, text=text, full=full, limit=limit,
        )  # fmt: skip
        return self._pages("/runs", models.Run, query, cursor)

    async def run(self, run_id: str) -> models.RunDetail:
        """A run with its parameters, result, error, story, child runs and counts of its tasks.

        Raises:
            UnknownRun: there is none of this id.
        """
        return await self._get(_of_run(run_id), models.RunDetail, run_id=run_id)

    def task_runs(
        self,
        run_id: str,
        *,
        task: str | None = None,
        state: str | Iterable[str] = (),
        limit: int = 50,
        cursor: str | None = None,
    ) -> Pages[models.TaskRun]:
        """The task runs of a run, in the order in which they were made; 500 on a page at most."""
        query = _asked(models.TaskQuery, task=task, state=_some(state), limit=limit)
        path = _of_run(run_id, "task-runs")
        return self._pages(path, models.TaskRun, query, cursor, run_id)

    async def task_run(self, run_id: str, seq: int | str) -> models.TaskDetail:
        """One task run, with its attempts and its result.

        Args:
            seq: its number, or its id.
        """
        number = str(seq).removeprefix(f"{run_id}-")
        return await self._get(
            _of_run(run_id, "task-runs", number), models.TaskDetail, run_id=run_id
        )

    async def task_counts(self, run_id: str) -> list[models.TaskCount]:
        """How many task runs of each task are in each state."""
        path = _of_run(run_id, "task-counts")
        return (await self._get(path, models.Page[models.TaskCount], run_id=run_id)).items

    async def attempts(self, run_id: str) -> list[models.RunAttempt]:
        """The failed attempts of all task runs of a run that were tried again."""
        path = _of_run(run_id, "attempts")
        return (await self._get(path, models.Page[models.RunAttempt], run_id=run_id)).items

    async def timeline(self, run_id: str, limit: int = 2000) -> models.Timeline:
        """When the task runs of a run ran, compact, for a picture."""
        query = _asked(models.TimelineQuery, limit=limit)
        return await self._get(_of_run(run_id, "timeline"), models.Timeline, query, run_id=run_id)

    async def forms(self, run_id: str) -> models.Forms:
        """JSON schemas of the parameters of a run, and of the answer that it waits for."""
        return await self._get(_of_run(run_id, "forms"), models.Forms, run_id=run_id)

    def logs(
        self,
        run_id: str,
        *,
        level: int = 0,
        text: str = "",
        task_run: str | None = None,
        limit: int = 200,
        cursor: str | None = None,
    ) -> Pages[models.LogLine]:
        """Log lines of a run, oldest first.

        Args:
            level: the lowest, as in stdlib logging.
            text: only lines with it.
            task_run: only those of this task run.
        """
        query = _asked(models.LogQuery, level=level, text=text, task_run=task_run, limit=limit)
        return self._pages(_of_run(run_id, "logs"), models.LogLine, query, cursor, run_id)

    def artifacts(
        self,
        run_id: str,
        *,
        kind: str | Iterable[str] = (),
        data: bool = True,
        limit: int = 200,
        cursor: str | None = None,
    ) -> Pages[models.Artifact]:
        """What a run shows: texts, tables, links, pictures and progress.

        Args:
            kind: only "markdown", "table", "link", "image" or "progress".
            data: whether what they hold is wanted.
        """
        query = _asked(models.ArtifactQuery, kind=_some(kind), data=data, limit=limit)
        return self._pages(_of_run(run_id, "artifacts"), models.Artifact, query, cursor, run_id)

    async def cancel(self, run_id: str, *, expected_state: str | None = None) -> models.Run:
        """Ask for a run to be cancelled, in whatever process it is; see `wait` for its end.

        Args:
            expected_state: where the run is in another state by now, nothing is done.

        Raises:
            UnknownRun: there is no such run.
            ServerError: it has ended, or is in another state than was expected (409).
        """
        return await self._act(
            run_id, "cancel", _made(models.Expected, expected_state=expected_state)
        )

    async def resume(self, run_id: str, *, expected_state: str | None = None) -> models.Run:
        """Go on with a run that failed, crashed, was cancelled or interrupted.

        Raises:
            RunNotResumable: it completed, or is running.
        """
        return await self._act(
            run_id, "resume", _made(models.Expected, expected_state=expected_state)
        )

    async def rerun(
        self,
        run_id: str,
        parameters: Mapping[str, Any] | None = None,
        *,
        idempotency_key: str | None = None,
    ) -> models.Run:
        """Run the flow of a run again under a new id; the new run.

        Args:
            parameters: values that replace those of the run.
            idempotency_key: the same key gives the same run; by default a new one, so that no
                answer that is lost makes a second run.
        """
        body = _made(
            models.Rerun, parameters=_plain(parameters), idempotency_key=_key(idempotency_key)
        )
        return await self._act(run_id, "rerun", body, again=True)

    async def fork(
        self,
        run_id: str,
        *,
        from_task: str | None = None,
        parameters: Mapping[str, Any] | None = None,
        results: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
    ) -> models.Run:
        """Run a run again under a new id, with what it has recorded; the new run.

        Args:
            from_task, parameters, results: as of `Engine.fork`.
            idempotency_key: as of `rerun`.
        """
        body = _made(
            models.Fork,
            from_task=from_task,
            parameters=_plain(parameters),
            results=_plain(results),
            idempotency_key=_key(idempotency_key),
        )
        return await self._act(run_id, "fork", body, again=True)

    async def answer(self, run_id: str, data: Any = None) -> models.Run:
        """Answer a run that waits for a person.

        Raises:
            InvalidParameters: the answer does not fit.
            AlreadyAnswered, RunNotResumable: somebody else was quicker, or it waits for none.
        """
        return await self._act(run_id, "answer", models.Answer(data=data))

    async def delete(self, run_id: str, *, expected_state: str | None = None) -> int:
        """Remove a run that has ended, with all that belongs to it; how many runs went.

        Raises:
            RunNotResumable: it is being run, or is a child of another run.
        """
        body = _made(models.Expected, expected_state=expected_state)
        path = _of_run(run_id, "delete")
        return (await self._send("POST", path, models.Deleted, body, run_id=run_id)).deleted

    async def bulk(
        self,
        action: Literal["cancel", "resume", "delete"],
        *,
        state: str | Iterable[str] = (),
        flow: str | None = None,
        tags: str | Iterable[str] = (),
        deployment: str | None = None,
        since: datetime | None = None,
        parent: str = "roots",
        text: str = "",
        limit: int = 500,
    ) -> models.BulkDone:
        """Do the same to all runs that a filter finds, newest first, 500 at most."""
        which = _made(
            models.RunFilter,
            state=_some(state), flow=flow, tag=_some(tags), deployment=deployment, since=since,
            parent=parent, text=text,
        )  # fmt: skip
        body = _made(models.Bulk, action=action, filter=which, limit=limit)
        return await self._send("POST", "/runs/bulk", models.BulkDone, body)

    async def wait(self, run_id: str, timeout: float | None = None) -> models.Run:
        """Wait until a run has ended, or nobody goes on with it; the run, in full.

        Args:
            timeout: seconds; None: as long as it takes.

        Raises:
            UnknownRun: there is no such run, or it was removed meanwhile.
            ServerTimeout: it has not ended in time; it goes on.
        """

        if not _ID.fullmatch(run_id):
            await self.run(run_id)  # says that there is none

        async def look() -> models.Run | None:
            found = await self.runs(id=run_id, parent="any", full=True, limit=1)
            row = next((one for one in found.items if one.id == run_id), None)
            if row is None:
                return await self.run(run_id)
            return row if StateType(row.state).is_final or not row.is_owned else None

        return await self._until(look, timeout, f"the run {run_id} has not ended")

    # --- deployments ------------------------------------------------------------------------------

    async def deployments(self) -> list[models.Deployment]:
        """All deployments, by name."""
        return (await self._get("/deployments", models.Page[models.Deployment])).items

    async def deployment(self, name: str) -> models.Deployment:
        """One deployment.

        Raises:
            UnknownDeployment: there is none of this name.
        """
        return await self._get(_at("deployments", name), models.Deployment)

    def ticks(
        self,
        name: str,
        *,
        state: str | Iterable[str] = (),
        limit: int = 50,
        cursor: str | None = None,
    ) -> Pages[models.Tick]:
        """What became of the ticks of a deployment, newest first.

        Args:
            state: only "run", "queued", "skipped" or "missed".
        """
        query = _asked(models.TickQuery, state=_some(state), limit=limit)
        return self._pages(_at("deployments", name, "ticks"), models.Tick, query, cursor)

    async def declare_deployment(self, name: str, **declared: Any) -> models.Deployment:
        """Declare a deployment of a flow that is there where the server runs, or change one.

        Args:
            declared: as of `asyncflow.server.models.DeclareDeployment`: `flow`, `schedules`, ...
        """
        body = _made(models.DeclareDeployment, **declared)
        path = _at("deployments", name)
        return await self._send("PUT", path, models.Deployment, body)

    async def run_deployment(
        self,
        name: str,
        parameters: Mapping[str, Any] | None = None,
        *,
        run_name: str | None = None,
        idempotency_key: str | None = None,
    ) -> models.Run:
        """Start a run of a deployment; see `wait` for its end.

        Args:
            parameters: values that replace those of the deployment.
            idempotency_key: as of `rerun`.

        Raises:
            UnknownDeployment: there is none of this name.
            DeploymentBusy: its overlap policy does not allow another run now.
            InvalidParameters: they do not fit.
        """
        body = _made(
            models.RunDeployment,
            parameters=_plain(parameters),
            name=run_name,
            idempotency_key=_key(idempotency_key),
        )
        path = _at("deployments", name, "run")
        return self._run_of(await self._send("POST", path, models.Done, body, again=True))

    async def pause_deployment(self, name: str, schedule: str | None = None) -> None:
        """Let it, or one of its schedules, start no runs by itself."""
        body = _made(models.PauseDeployment, schedule=schedule)
        await self._send("POST", _at("deployments", name, "pause"), models.Ok, body)

    async def resume_deployment(self, name: str, schedule: str | None = None) -> None:
        """Let it start runs again. What has passed meanwhile does not run."""
        body = _made(models.PauseDeployment, schedule=schedule)
        await self._send("POST", _at("deployments", name, "resume"), models.Ok, body)

    async def remove_deployment(self, name: str) -> None:
        """Forget it; its runs stay."""
        await self._send("DELETE", _at("deployments", name), models.Ok)

    # --- automations ------------------------------------------------------------------------------

    async def automations(self) -> list[models.Automation]:
        """All automations, by name."""
        return (await self._get("/automations", models.Page[models.Automation])).items

    async def automation(self, name: str) -> models.Automation:
        """One automation.

        Raises:
            UnknownAutomation: there is none of this name.
        """
        return await self._get(_at("automations", name), models.Automation)

    async def declare_automation(self, name: str, **declared: Any) -> models.Automation:
        """Declare an automation, or another one in its place.

        Args:
            declared: as of `asyncflow.server.models.DeclareAutomation`: `trigger`, `actions`, ...
        """
        body = _made(models.DeclareAutomation, **declared)
        path = _at("automations", name)
        return await self._send("PUT", path, models.Automation, body)

    async def enable_automation(self, name: str, enabled: bool = True) -> None:
        """Switch it on or off. What happens while it is off never fires it."""
        path = _at("automations", name, "enable" if enabled else "disable")
        await self._send("POST", path, models.Ok)

    async def remove_automation(self, name: str) -> None:
        """Forget it."""
        await self._send("DELETE", _at("automations", name), models.Ok)

    def deliveries(
        self,
        *,
        automation: str | None = None,
        run: str | None = None,
        state: str | Iterable[str] = (),
        limit: int = 50,
        cursor: str | None = None,
    ) -> Pages[models.Delivery]:
        """What automations have to do and have done, newest first."""
        query = _asked(
            models.DeliveryQuery, automation=automation, run=run, state=_some(state), limit=limit
        )
        return self._pages("/deliveries", models.Delivery, query, cursor)

    # --- commands ---------------------------------------------------------------------------------

    def commands(
        self, *, state: str | Iterable[str] = (), limit: int = 50, cursor: str | None = None
    ) -> Pages[models.Command]:
        """What the server has asked of engines that have the code for it, newest first.

        Args:
            state: only "WAITING", "TAKEN", "DONE", "FAILED" or "EXPIRED".
        """
        query = _asked(models.CommandQuery, state=_some(state), limit=limit)
        return self._pages("/commands", models.Command, query, cursor)

    async def command(self, command_id: str) -> models.Command:
        """One of them.

        Raises:
            ServerError: there is none of this id (404).
        """
        return await self._get(_at("commands", command_id), models.Command)

    # --- limits and variables ---------------------------------------------------------------------

    async def limits(self) -> list[models.LimitInfo]:
        """Named limits, and which engines have how much of them."""
        return (await self._get("/limits", models.Page[models.LimitInfo])).items

    async def set_limit(
        self, name: str, limit: float, period: float | None = None, burst: int | None = None
    ) -> None:
        """Set a named limit for all engines.

        Args:
            limit: slots; with *period*, so many in so many seconds; 0 pauses.
        """
        body = _made(models.SetLimit, limit=limit, period=period, burst=burst)
        await self._send("PUT", _at("limits", name), models.Ok, body)

    async def lift_limit(self, name: str) -> None:
        """Lift a named limit."""
        await self._send("DELETE", _at("limits", name), models.Ok)

    async def variables(self) -> list[models.Variable]:
        """Variables, by name."""
        return (await self._get("/variables", models.Page[models.Variable])).items

    async def variable(self, name: str) -> models.Variable:
        """One variable.

        Raises:
            ServerError: there is none of this name (404).
        """
        return await self._get(_at("variables", name), models.Variable)

    async def set_variable(self, name: str, value: Any) -> None:
        """Give a variable a value of JSON.

        Raises:
            InvalidOption: the name or the value is none.
        """
        body = models.SetVariable(value=value)
        await self._send("PUT", _at("variables", name), models.Ok, body)

    async def delete_variable(self, name: str) -> None:
        """Remove a variable.

        Raises:
            ServerError: there is none of this name (404).
        """
        await self._send("DELETE", _at("variables", name), models.Ok)

    # --- events -----------------------------------------------------------------------------------

    def events(
        self,
        *,
        kinds: str | Iterable[str] = (),
        run: str | None = None,
        since: datetime | None = None,
        oldest_first: bool = False,
        limit: int = 50,
        cursor: str | None = None,
    ) -> Pages[models.Event]:
        """What happened, newest first.

        Args:
            kinds: such as "flow-run.Failed", or "task-run.*".
            run: only what is about the run with this id.
            oldest_first: from the first on, or from the one after *cursor*, which is an id then.
        """
        query = _asked(
            models.EventQuery, kind=_some(kinds), run=run, since=since, limit=limit,
            order="oldest" if oldest_first else "newest",
        )  # fmt: skip
        return self._pages("/events", models.Event, query, cursor, run)

    async def stream(
        self,
        *,
        kinds: str | Iterable[str] = (),
        run: str | None = None,
        after: int | None = None,
        patience: float = PATIENCE,
    ) -> AsyncGenerator[models.Event, None]:
        """Events as they come, each once and in order; a connection that breaks is made anew.

        Args:
            kinds, run: as of `events`.
            after: the id of the last event that was seen; None: only what comes from now on.
            patience: seconds for which it goes on though the server cannot be reached.

        Raises:
            ServerUnreachable, ServerTimeout: the server was away for longer than that.
        """
        kinds = _some(kinds)
        if after is None:
            newest = await self.events(limit=1)
            after = newest.items[0].id if newest.items else 0
        loop = asyncio.get_running_loop()
        failures, until = 0, loop.time() + patience
        while True:
            begun, broken = inf, None
            try:
                async with self._transport.listen("/stream", after) as stream:
                    begun = loop.time()
                    # What a message brings may be cut, and is not filtered: it is a sign to look.
                    while (message := await stream.next()) is not None:
                        failures, until = 0, loop.time() + patience
                        async for event in self.events(
                            kinds=kinds, run=run, oldest_first=True, limit=_EVENTS,
                            cursor=str(after),
                        ):  # fmt: skip
                            after = max(after, event.id)
                            yield event
                        if message.id.isdigit():
                            after = max(after, int(message.id))
            except (ServerUnreachable, ServerTimeout) as error:
                broken = error
            if loop.time() - begun > SOUND:
                failures, until = 0, loop.time() + patience
            elif loop.time() >= until:
                raise broken or ServerUnreachable(f"the server at {self.url} ends every stream")
            await self._transport.pause(self._transport.delay(failures))
            failures += 1

    # --- how it asks ------------------------------------------------------------------------------

    async def _until(
        self, look: Callable[[], Awaitable[T | None]], timeout: float | None, what: str
    ) -> T:
        """Look again and again, less and less often."""
        loop = asyncio.get_running_loop()
        end = None if timeout is None else loop.time() + timeout
        wait = FIRST_LOOK
        while True:
            found = await look()
            if found is not None:
                return found
            if end is not None and loop.time() >= end:
                raise ServerTimeout(f"{what} within {timeout:g} s: it goes on")
            left = wait if end is None else min(wait, max(0.0, end - loop.time()))
            await self._transport.pause(left)
            wait = min(LAST_LOOK, wait * 1.5)

    async def _get(
        self,
        path: str,
        model: type[M],
        query: list[tuple[str, str]] | None = None,
        run_id: str | None = None,
    ) -> M:
        return await self._asked("GET", path, model, query=query, again=True, run_id=run_id)

    async def _send(
        self,
        method: str,
        path: str,
        model: type[M],
        body: BaseModel | None = None,
        *,
        again: bool = False,
        run_id: str | None = None,
    ) -> M:
        plain = body.model_dump(exclude_unset=True) if body is not None else {}
        return await self._asked(method, path, model, body=plain, again=again, run_id=run_id)

    async def _act(
        self, run_id: str, verb: str, body: BaseModel, *, again: bool = False
    ) -> models.Run:
        path = _of_run(run_id, verb)
        done = await self._send("POST", path, models.Done, body, again=again, run_id=run_id)
        return self._run_of(done)

    def _run_of(self, done: models.Done) -> models.Run:
        if done.run is None:
            raise self._misfit(f"no run: {done.detail}")
        return done.run

    def _pages(
        self,
        path: str,
        model: type[M],
        query: list[tuple[str, str]],
        cursor: str | None,
        run_id: str | None = None,
    ) -> Pages[M]:
        async def page(at: str | None) -> models.Page[M]:
            asked = query if at is None else [*query, ("cursor", at)]
            pages: Any = models.Page[model]  # type: ignore[valid-type] # made as the program runs
            found: models.Page[M] = await self._get(path, pages, asked, run_id)
            return found

        return Pages(page, cursor)

    async def _asked(self, method: str, path: str, model: type[M], **how: Any) -> M:
        try:
            status, found = await self._transport.ask(method, path, **how)
        except ServerError as error:
            if error.status in _NO_SUCH_PATH and path != "/health":
                await self._check_version(error)
            raise
        if status == 202:
            return await self._when_done(path, model, found)
        try:
            return model.model_validate(found)
        except ValidationError as error:
            if path == "/health":
                raise self._misfit("another kind of server") from None
            misfit = self._misfit(f"an answer that is not understood ({models.misfit(error)})")
            await self._check_version(misfit)
            raise misfit from None

    async def _when_done(self, path: str, model: type[M], found: Any) -> M:
        """What is only asked for, by a server without the code: what it would have answered.

        Raises:
            CommandFailed: it was not done.
            ServerTimeout: it is not known yet what came of it.
        """
        try:
            command = models.Asked.model_validate(found).command
        except ValidationError:
            raise self._misfit("an answer that is not understood") from None

        async def look() -> models.Command | None:
            one = await self.command(command.id)
            return one if one.ended_at is not None or one.state == "EXPIRED" else None

        what = f"the server has asked for it ({command.kind}), and nothing has come of it"
        done = await self._until(look, MOST_ASKED, what)
        if done.state != "DONE":
            raise CommandFailed(done.detail)
        if model is not models.Done:
            return await self._get(path, model)
        run = await self.run(done.made_run_id) if done.made_run_id is not None else None
        made: Any = models.Done(run=run, detail=done.detail)
        return cast("M", made)

    def _misfit(self, what: str) -> ServerError:
        return ServerError(0, "Not understood", f"what answers at {self.url} gives {what}")

    async def _check_version(self, because: ServerError) -> None:
        """Raise ServerError where the server has another version, or is at another path.

        Args:
            because: what went wrong.
        """
        try:
            found = (await self.health()).version
        except ServerError as error:
            if error.status == 404:
                text = f"there is no asyncflow server at {self.url}: look at the path in it"
                raise ServerError(404, "Not here", text) from None
            return
        except AsyncflowError:
            return
        if found != __version__:
            raise ServerError(
                because.status,
                "Another version",
                f"the server at {self.url} is of asyncflow {found}, and this client of"
                f" {__version__}, and they do not understand each other ({because}): bring both"
                " to the same version",
            ) from None


def _at(*parts: str) -> str:
    """A path of names, each of which may be anything."""
    for part in parts:
        if part in ("", ".", ".."):
            raise InvalidOption(f"{part!r} is no name")
    try:
        return "".join(f"/{quote(part, safe='')}" for part in parts)
    except UnicodeEncodeError:
        raise InvalidOption("a name holds what is no text") from None


def _of_run(run_id: str, *more: str) -> str:
    return _at("runs", run_id, *more)


def _some(given: str | Iterable[str]) -> list[str]:
    return [given] if isinstance(given, str) else list(given)


def _key(given: str | None) -> str:
    """What keeps a run from being made twice."""
    return given if given is not None else f"client-{uuid.uuid4()}"


def _plain(given: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return None if given is None else dict(given)


def _made(model: type[M], /, **given: Any) -> M:
    """What is sent, checked before it is.

    Raises:
        InvalidParameters: it does not fit.
    """
    try:
        return model.model_validate(given)
    except ValidationError as error:
        raise InvalidParameters(models.misfit(error)) from None


def _asked(model: type[BaseModel], /, **given: Any) -> list[tuple[str, str]]:
    """A query, checked before it is sent; what is as by default is left out."""
    made = _made(model, **given).model_dump(mode="json", exclude_defaults=True)
    pairs = []
    for name, value in made.items():
        for one in value if isinstance(value, list) else [value]:
            text = str(one).lower() if isinstance(one, bool) else str(one)
            pairs.append((name, text))
    return pairs


__all__ = ["Client", "Pages"]

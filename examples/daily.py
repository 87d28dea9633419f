"""The retrieval as a service: each morning by itself, and a person lets the report out.

    python examples/daily.py
    asyncflow server start

It deploys the flow below for half past six each morning, declares what is to happen while a report
waits and when one is out, and has a first run made at once, of a few pages. That run asks
before it publishes, and so ends up on the dashboard's page of what needs attention. Answer it by
`asyncflow runs answer RUN -p publish=true`, and start this again: it goes on with the run. While
`asyncflow serve examples/daily.py:daily` runs beside the server, the dashboard's button does both.
"""

from __future__ import annotations

import argparse
import asyncio
from contextlib import suppress
from pathlib import Path

from pydantic import BaseModel
from retrieve import retrieve

from asyncflow import (
    Automation,
    Cron,
    Engine,
    EventTrigger,
    FlowRun,
    SetLimit,
    create_markdown_artifact,
    flow,
    get_variable,
    pause_flow_run,
    runtime,
    set_variable,
    task,
)

NAME = "daily flights"


class Release(BaseModel):
    """What the person is asked who looks at the report."""

    publish: bool = True
    remark: str = ""


@task
def publish(out: str, remark: str) -> str:
    """Mark the report as the one that counts."""
    file = Path(out) / "published.txt"
    file.write_text(f"{runtime.flow_run.id} {remark}\n")
    return str(file)


@flow
async def daily(pages: int = 370, out: str = "out") -> str:
    """Retrieve, compare with the last time, ask, publish."""
    found = await retrieve(pages=pages, out=out)
    last = await get_variable("flights.last", found)
    more = found["flights"] - last["flights"]
    create_markdown_artifact(
        f"**{found['flights']}** flights, {more:+} since the last report;"
        f" {found['rejected']} records were malformed.",
        key="report",
        description="What is to be published.",
    )
    answer = await pause_flow_run(wait_for_input=Release)
    if not answer.publish:
        return "held back"
    await set_variable("flights.last", found)
    return await publish.submit(out, answer.remark)


async def settled(engine: Engine, run: FlowRun[str]) -> None:
    """Until it ends, or waits for an answer, which may take days; and automations have acted."""
    with suppress(TimeoutError):
        async with asyncio.timeout(120):
            while not run.state.is_final() and run.state.name != "Paused":  # noqa: ASYNC110 - either may come
                await asyncio.sleep(0.1)
            while not await engine.deliveries(run_id=run.id, states="delivered"):  # noqa: ASYNC110 - in the store
                await asyncio.sleep(0.1)


async def main(pages: int, out: str) -> None:
    async with Engine() as engine:
        await engine.set_variable("flights.contact", "ops@example.org")
        # While somebody reads a report, others that retrieve leave the service alone.
        for name, kind, rate in (("slowly", "Paused", 50), ("as before", "Completed", 200)):
            await engine.automate(
                Automation(
                    f"{name} once a report is {kind.lower()}",
                    EventTrigger(f"flow-run.{kind}", {"deployment": NAME}),
                    [SetLimit("flights", rate, period=1)],
                )
            )
        given = {"pages": pages, "out": out}
        await engine.deploy(
            daily, NAME, schedule=Cron("30 6 * * *", timezone="America/New_York"), parameters=given
        )
        if not (runs := await engine.recover()):
            runs = [await engine.run_deployment(NAME)]
        for run in runs:
            await settled(engine, run)
            print(f"{run.name} is {run.state.name}: asyncflow runs show {run.id}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--pages", type=int, default=40, help="pages of flights")
    parser.add_argument("--out", default="out", help="the folder of the report")
    options = parser.parse_args()
    asyncio.run(main(options.pages, options.out))

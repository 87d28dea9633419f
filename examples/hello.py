"""The smallest flow: a task that is retried, mapped over some names.

python examples/hello.py
asyncflow run examples/hello.py:hello --param 'names=["Grace", "Barbara"]'
"""

import asyncio
from collections.abc import Sequence

from asyncflow import flow, task


@task(retries=2, retry_delay_seconds=0.1)
async def greet(name: str) -> str:
    await asyncio.sleep(0.1)  # here a real task would wait for something
    return f"hello, {name}"


@flow
async def hello(names: Sequence[str] = ("Ada", "Edsger", "Grace")) -> list[str]:
    greetings: list[str] = await greet.map(names)  # all at once, results in the order of the names
    for greeting in greetings:
        print(greeting)
    return greetings


def main() -> None:
    asyncio.run(hello())


if __name__ == "__main__":
    main()

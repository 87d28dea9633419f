"""CPU work on all cores, in processes that can be killed: one of them never comes to an end.

python examples/cpu_processes.py
asyncflow run examples/cpu_processes.py:primes --param 'limit=1000000'
"""

import asyncio

from asyncflow import TaskTimeout, flow, task


@task(runner="process", max_concurrency=4, timeout_seconds=3)
def count_primes(start: int, stop: int) -> int:
    """How many primes there are in a range, by trial division: slow on purpose."""
    return sum(_is_prime(number) for number in range(start, stop))


def _is_prime(number: int) -> bool:
    if number < 4:
        return number > 1
    if number % 2 == 0:
        return False
    return all(number % divisor for divisor in range(3, int(number**0.5) + 1, 2))


@flow
async def primes(limit: int = 400_000, chunks: int = 8) -> int:
    step = -(-limit // chunks)
    starts = list(range(0, limit, step))
    stops = [min(start + step, limit) for start in starts]
    good = count_primes.map(starts, stops)
    runaway = count_primes.submit(0, 10**12)  # some zeros too many
    total: int = sum(await good)
    print(f"{total} primes below {limit}, counted in {len(starts)} chunks")
    try:
        await runaway
    except TaskTimeout as timeout:
        print(f"the runaway was killed: {timeout}")
    return total


def main() -> None:
    asyncio.run(primes())


if __name__ == "__main__":
    main()

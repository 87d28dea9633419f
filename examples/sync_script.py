"""A script without a word of asyncio: plain functions, called plainly, in plain code.

python examples/sync_script.py
asyncflow run examples/sync_script.py:count_lines --param package=json
"""

from importlib.util import find_spec
from pathlib import Path

from asyncflow import flow, get_run_logger, task


@task
def list_files(package: str) -> list[str]:
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise LookupError(f"there is no package {package!r}")
    return sorted(str(file) for file in Path(spec.submodule_search_locations[0]).rglob("*.py"))


@task(retries=2, retry_delay_seconds=0.1, retry_on=OSError)
def count(file: str) -> int:
    return len(Path(file).read_text(encoding="utf-8", errors="replace").splitlines())


@flow(max_concurrency=8)
def count_lines(package: str = "asyncio") -> int:
    files = list_files(package)  # runs here, and gives its value
    lines = count.map(files).result()  # runs in threads, eight at a time
    get_run_logger().info("counted %d files", len(files))
    for size, file in sorted(zip(lines, files, strict=True), reverse=True)[:3]:
        print(f"{size:6} {Path(file).name}")
    print(f"{sum(lines):6} lines in the {len(files)} files of {package}")
    return sum(lines)


def main() -> None:
    count_lines()


if __name__ == "__main__":
    main()

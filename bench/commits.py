"""Commits per second of the store with every one on the disk, beside bare fsync in the same run.

    python -m bench.commits [--folder DIR] [--commits 40000] [--value-bytes 400]

*fsync* appends a value to a file and syncs it, one after the other: what a store without group
commit could reach at best. *store* commits single operations from 1, 10, 100 and 1,000 tasks.
The folder should be on the disk of a real data folder: on a tmpfs fsync costs nothing.
"""

import argparse
import os
import tempfile
import time
from contextlib import aclosing
from pathlib import Path

import trio

from swarmctl.controller.store.api import Put
from swarmctl.controller.store.sqlite import SqliteStore

TASKS = (1, 10, 100, 1000)
# One after the other is slow; this many are enough for a median.
ALONE = 500


def measure_fsync(path: Path, value: bytes) -> float:
    """Synced appends per second."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        started_s = time.perf_counter()
        for _ in range(ALONE):
            os.write(descriptor, value)
            os.fsync(descriptor)
        return ALONE / (time.perf_counter() - started_s)
    finally:
        os.close(descriptor)


async def measure_store(store: SqliteStore, tasks: int, commits: int, value: bytes) -> str:
    """A line on ``commits`` commits of ``tasks`` tasks."""
    each = (ALONE if tasks == 1 else commits) // tasks
    latencies_s: list[float] = []

    async def write(task: int) -> None:
        for number in range(each):
            started_s = time.perf_counter()
            await store.commit([Put(f"bench/{tasks}/{task}/{number}", value)])
            latencies_s.append(time.perf_counter() - started_s)

    before = store.statistics()
    started_s = time.perf_counter()
    async with trio.open_nursery() as nursery:
        for task in range(tasks):
            nursery.start_soon(write, task)
    duration_s = time.perf_counter() - started_s
    after = store.statistics()
    latencies_s.sort()
    return (
        f"store, {tasks:5} tasks {each * tasks / duration_s:9,.0f} commits/s"
        f"   median {latencies_s[len(latencies_s) // 2] * 1e3:6.2f} ms"
        f"   p99 {latencies_s[len(latencies_s) * 99 // 100] * 1e3:6.2f} ms"
        f"   {after.groups - before.groups:6,} groups"
        f"   {(after.sync_s - before.sync_s) / duration_s:4.0%} in sync"
    )


async def bench(folder: Path, commits: int, value: bytes) -> None:
    """Print what was measured in ``folder``."""
    print(f"fsync, one by one {measure_fsync(folder / 'file', value):9,.0f} writes/s")
    path = folder / "store.db"
    async with aclosing(await SqliteStore.open(path, new_cluster_id=lambda: "be" * 16)) as store:
        await store.take_term()
        for tasks in TASKS:
            print(await measure_store(store, tasks, commits, value))


def main() -> None:
    """Parse the arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path.cwd())
    parser.add_argument("--commits", type=int, default=40_000)
    parser.add_argument("--value-bytes", type=int, default=400)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder, prefix=".bench-") as folder:
        trio.run(bench, Path(folder), arguments.commits, os.urandom(arguments.value_bytes))


if __name__ == "__main__":
    main()

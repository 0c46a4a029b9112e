"""Run seeds: ``python -m tests.sim.world --seeds 200 --seed-base 0``; see ``--help``.

Every seed runs in a worker process with ``PYTHONHASHSEED=0``; workers share the seeds evenly and
write one line of JSON a seed.  ``--json FILE`` keeps the sum for the documents (:mod:`record`), and
with ``--plants`` each planted bug is sought in turn, and kept beside it.
"""

import argparse
import json
import os
import subprocess
import sys
import threading
import time
import traceback
from queue import SimpleQueue

from swarmctl import garbage
from tests.sim.world import record
from tests.sim.world.books import A_DEFECT
from tests.sim.world.plants import PLANTS, planted
from tests.sim.world.report import Summary

# What a shell says of a program that Ctrl-C ended.
_INTERRUPTED = 130


def _arguments():
    parser = argparse.ArgumentParser(prog="python -m tests.sim.world", description=__doc__)
    parser.add_argument("--seeds", type=int, default=200, help="how many, unless --for is given")
    parser.add_argument("--seed-base", type=int, default=0, help="the first")
    parser.add_argument("--for", type=float, default=0.0, dest="for_s", help="seconds to run")
    parser.add_argument("--at-least", type=int, default=200, help="seeds, whatever --for says")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--plant", default="", help="a bug to plant; see plants.py")
    parser.add_argument("--until-found", action="store_true", help="end at the first that fails")
    parser.add_argument("--plants", action="store_true", help="each bug, until it is found")
    parser.add_argument("--json", default="", metavar="FILE", help="to keep what was found in")
    parser.add_argument(
        "--harsh", action="store_true", help="long holds, and nodes taken out that run"
    )
    parser.add_argument("--show", action="store_true", help="every event of the first seed")
    parser.add_argument("--worker", type=int, default=-1, help=argparse.SUPPRESS)
    return parser.parse_args()


def _seeds(options, worker, began):
    """The seeds of one worker, as long as there is time."""
    number = 0
    while True:
        offset = worker + number * options.jobs
        if options.for_s:
            enough = offset >= options.at_least
            if enough and time.monotonic() - began > options.for_s:
                return
        elif offset >= options.seeds:
            return
        yield options.seed_base + offset
        number += 1


def _work(options):
    from tests.sim.world.world import run_seed

    garbage.tune()  # As the daemons have it.
    with planted(options.plant):
        for seed in _seeds(options, options.worker, time.monotonic()):
            began = time.process_time()
            try:
                line = _result(run_seed(seed, harsh=options.harsh))
            except Exception as error:  # noqa: BLE001 - a defect ended the run: that is a result, too
                traceback.print_exc()
                line = _crash(error)
            line |= {"seed": seed, "cpu_s": time.process_time() - began}
            sys.stdout.write(json.dumps(line) + "\n")
            sys.stdout.flush()


def _result(world):
    """What a run has shown."""
    books = world.books
    return {
        "digest": world.trace.digest,
        "events": world.trace.events,
        "nodes": len(world.machines),
        "calm_after_s": world.calm_after_s,
        "fired": dict(books.fired),
        "checked": dict(books.checked),
        "violations": books.violations,
    }


def _crash(error):
    """The result of a run that an exception has ended: the seed has failed, the others go on."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    said = f"{A_DEFECT}: {type(error).__name__}: {error}"
    nothing = {"digest": "", "events": 0, "nodes": 0, "calm_after_s": 0.0}
    return nothing | {"fired": {}, "checked": {}, "violations": [said]}


def _show(options):
    from tests.sim.world.world import run_seed

    with planted(options.plant):
        world = run_seed(options.seed_base, keep_trace=True, harsh=options.harsh)
    for line in world.trace.lines:
        print(line)
    print(f"{world.trace.events} events, digest {world.trace.digest}")
    for text in world.books.violations:
        print(f"VIOLATED {text}")
    return 1 if world.books.violations else 0


def _run_seeds(options):
    """Run them, and tell the sum; the exit code."""
    summary = _supervise(options, sys.argv[1:])
    told = summary.tell()
    if options.json and not (summary.interrupted or options.plant or summary.failed):
        record.keep(options.json, "seeds", summary.recorded())
    # What was cut off has not held, whatever it has shown so far.
    return _INTERRUPTED if summary.interrupted else told


def _seek_plants(options):
    """Each planted bug in turn, until it is found by what may find it; the exit code."""
    missed = []
    for name, plant in PLANTS.items():
        options.plant, options.until_found = name, True
        summary = _supervise(options, [*sys.argv[1:], "--plant", name])
        if summary.interrupted:
            return _INTERRUPTED
        found = summary.found()
        print(f"{name}: {found}", flush=True)
        if found is None or found.invariant not in plant.found_by:
            missed.append(name)
        elif options.json:
            record.keep(options.json, "plants", record.of_plant(name, plant, found))
    print(f"not found: {', '.join(missed)}" if missed else "each was found")
    return 1 if missed else 0


def _supervise(options, arguments):
    """Start the workers, and sum up what they say."""
    summary = Summary(options.plant, harsh=options.harsh, seed_base=options.seed_base)
    lines = SimpleQueue()
    workers = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.sim.world", "--worker", str(n), *arguments],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONHASHSEED": "0"},
        )
        for n in range(options.jobs)
    ]
    readers = [
        threading.Thread(target=_read, args=(worker, lines), daemon=True) for worker in workers
    ]
    for reader in readers:
        reader.start()
    left = len(workers)
    try:
        while left and not (options.until_found and summary.found()):
            line = lines.get()
            if line is None:
                left -= 1
            else:
                summary.add(json.loads(line))
    except KeyboardInterrupt:
        summary.interrupted = True
    finally:
        for worker in workers:
            worker.terminate() if worker.poll() is None else None
        broken = [worker.wait() for worker in workers]
    early = summary.interrupted or (options.until_found and summary.failed)
    summary.broken = [] if early else [code for code in broken if code]
    return summary


def _read(worker, lines):
    for line in worker.stdout:
        lines.put(line)
    lines.put(None)


def main():
    """What the arguments say; the exit code."""
    options = _arguments()
    if os.environ.get("PYTHONHASHSEED") != "0":
        # The order of sets is part of a run.
        os.execve(
            sys.executable,
            [sys.executable, "-m", "tests.sim.world", *sys.argv[1:]],
            os.environ | {"PYTHONHASHSEED": "0"},
        )
    if options.show:
        return _show(options)
    if options.worker >= 0:
        try:
            _work(options)
        except KeyboardInterrupt:
            pass  # The one who started us sums up.
        return 0
    return _seek_plants(options) if options.plants else _run_seeds(options)


if __name__ == "__main__":
    sys.exit(main())

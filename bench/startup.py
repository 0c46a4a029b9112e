"""How long a command takes to start, as a user feels it: medians of 7 runs of the executable.

``python -m bench.startup`` measures ``--version``, ``--help`` and, against a controller that it
starts on a free port, ``ps``.  DESIGN 5 allows 100 ms and 250 ms.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

RUNS: Final = 7
BUDGETS_S: Final = {"--version": 0.100, "ps": 0.250}
_READY_S: Final = 20.0


def main() -> int:
    """Print the medians; 1 when one is over its budget."""
    program = Path(sys.executable).with_name("swarmctl")
    with tempfile.TemporaryDirectory() as folder:
        environment = dict(os.environ) | {"SWARMCTL_CONFIG": folder}
        controller = subprocess.Popen(
            [program, "controller", "--data", f"{folder}/data", "--listen", "tcp://127.0.0.1:0"],
            stderr=subprocess.DEVNULL,
        )
        try:
            context = Path(folder, "data", "admin.context")
            _wait_for(context)
            environment["SWARMCTL_CONTEXT"] = str(context)
            late = False
            for arguments in (["--version"], ["--help"], ["ps"]):
                took_s = median_s([str(program), *arguments], environment)
                budget_s = BUDGETS_S.get(arguments[0])
                late = late or (budget_s is not None and took_s > budget_s)
                note = f" of {budget_s * 1000:.0f} allowed" if budget_s else ""
                print(f"swarmctl {arguments[0]:<10} {took_s * 1000:4.0f} ms{note}")
            return int(late)
        finally:
            controller.terminate()
            controller.wait()


def median_s(command: list[str], environment: dict[str, str]) -> float:
    """The median time of :data:`RUNS` runs, in seconds."""
    times: list[float] = []
    for _ in range(RUNS):
        began = time.perf_counter()
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def _wait_for(path: Path) -> None:
    deadline = time.monotonic() + _READY_S
    while not path.exists():
        if time.monotonic() > deadline:
            raise SystemExit(f"the controller did not write {path} in {_READY_S:g} s")
        time.sleep(0.02)


if __name__ == "__main__":
    sys.exit(main())

"""What is done for each ``kind`` of scenario: a module of that name with ``run(trial)``."""

import importlib

from bench.launch.scenario import KINDS
from bench.launch.trial import Trial


def carry_out(trial: Trial) -> None:
    """Run the trial's scenario; what it finds is in the trial, also when this raises."""
    kind = trial.scenario.kind
    assert kind in KINDS, f"{kind} is checked where scenarios are read"
    importlib.import_module(f"bench.launch.runs.{kind}").run(trial)

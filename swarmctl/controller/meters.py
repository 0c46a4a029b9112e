"""What the controller measures of itself: time by stage, and how long launches take.

Counters only, aggregated where they arise, so that a million launches cost a list of buckets.
Latencies go into buckets that grow by a factor of 2**(1/8): a quantile is right within 9 %.
"""

import math
import os
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from attrs import define, field

_PER_DOUBLING: Final = 8
# 0.1 ms; with 256 buckets the last one is beyond a day.
_SMALLEST_S: Final = 1e-4
_BUCKETS: Final = 256


@define
class LatencyHistogram:
    """How long something took, many times."""

    counts: list[int] = field(factory=lambda: [0] * _BUCKETS, repr=False)
    total: int = 0
    longest_s: float = 0.0

    def add(self, seconds: float, times: int = 1) -> None:
        """Count ``times`` durations of ``seconds``."""
        bucket = 0
        if seconds > _SMALLEST_S:
            bucket = min(_BUCKETS - 1, int(math.log2(seconds / _SMALLEST_S) * _PER_DOUBLING) + 1)
        self.counts[bucket] += times
        self.total += times
        self.longest_s = max(self.longest_s, seconds)

    def quantile_s(self, share: float) -> float:
        """The duration that ``share`` of all do not exceed; 0 when there are none."""
        wanted = share * self.total
        seen = 0
        for bucket, count in enumerate(self.counts):
            seen += count
            if count and seen >= wanted:
                upper_s: float = _SMALLEST_S * 2.0 ** (bucket / _PER_DOUBLING)
                return min(upper_s, self.longest_s)
        return 0.0

    def buckets(self) -> list[tuple[float, int]]:
        """The longest duration of each bucket that has any, in milliseconds, and how many."""
        return [
            (_SMALLEST_S * 2.0 ** (bucket / _PER_DOUBLING) * 1000, count)
            for bucket, count in enumerate(self.counts)
            if count
        ]

    def view(self) -> dict[str, Any]:
        """As the statistics show it, in milliseconds."""
        return {
            "count": self.total,
            "p50_ms": self.quantile_s(0.5) * 1000,
            "p99_ms": self.quantile_s(0.99) * 1000,
            "max_ms": self.longest_s * 1000,
            "buckets_ms": self.buckets(),
        }


@define
class Meters:
    """One controller's counters since it started."""

    launches: LatencyHistogram = field(factory=LatencyHistogram)
    stages_s: dict[str, float] = field(factory=dict)
    _under_way: dict[str, int] = field(factory=dict)
    _since: dict[str, float] = field(factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the time inside the block (wall clock) under ``name``."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, time.perf_counter() - began)

    @contextmanager
    def overlapping(self, name: str) -> Iterator[None]:
        """Count the time in which anybody is inside such a block: those beside each other once."""
        under_way = self._under_way.get(name, 0)
        if not under_way:
            self._since[name] = time.perf_counter()
        self._under_way[name] = under_way + 1
        try:
            yield
        finally:
            self._under_way[name] -= 1
            if not self._under_way[name]:
                self.add(name, time.perf_counter() - self._since[name])

    def add(self, name: str, seconds: float) -> None:
        """Count ``seconds`` under ``name``."""
        self.stages_s[name] = self.stages_s.get(name, 0.0) + seconds

    def view(self) -> dict[str, Any]:
        """All of it, with what the process has used."""
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return {
            "launches": self.launches.view(),
            "stages_s": dict(self.stages_s),
            "cpu_s": usage.ru_utime + usage.ru_stime,
            "peak_rss_mib": usage.ru_maxrss / 1024,
            "pid": os.getpid(),
        }

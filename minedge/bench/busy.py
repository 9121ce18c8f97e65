"""What else runs on the machine, from /proc/stat: before a measurement, and during it."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

__all__ = ["BUSY", "Load", "cpu_times", "free_bytes", "look"]

BUSY = 0.05  # share of the processors used by others from which figures are called disturbed


@dataclass(frozen=True)
class Load:
    """`share` of the processors in use by others (0..1, -1 unknown), `stolen` by other guests of the same host."""

    share: float
    stolen: float
    average: float  # the system's load average of the last minute

    @property
    def disturbed(self) -> bool:
        return self.share > BUSY or self.stolen > BUSY

    @property
    def warning(self) -> str:
        """What to say where it is disturbed."""
        return (
            f"warning: the machine is busy: others use {self.share:.0%} of its processors"
            + (f", its host takes {self.stolen:.0%}" if self.stolen > BUSY else "")
            + f" (load {self.average:.1f}); figures will be low and ratios less sure"
        )


def cpu_times() -> tuple[float, float, float] | None:
    """(seconds in use, seconds stolen by the host, all seconds) over all processors since the start; None if unknown.

    The first line of /proc/stat: user nice system idle iowait irq softirq steal guest guest_nice, in ticks; guest time
    is part of user time.
    """
    try:
        with open("/proc/stat", encoding="ascii") as file:
            fields = [int(word) for word in file.readline().split()[1:9]]
    except (OSError, ValueError):
        return None
    if len(fields) < 8:
        return None
    tick = os.sysconf("SC_CLK_TCK")
    idle, steal = fields[3] + fields[4], fields[7]
    return (sum(fields) - idle - steal) / tick, steal / tick, sum(fields) / tick


def look(seconds: float = 1.0) -> Load:
    """Watch the machine for `seconds` in which we do nothing."""
    before = cpu_times()
    time.sleep(seconds)
    after = cpu_times()
    average = os.getloadavg()[0] if hasattr(os, "getloadavg") else -1.0
    if before is None or after is None or after[2] <= before[2]:
        return Load(-1.0, -1.0, average)
    total = after[2] - before[2]
    return Load((after[0] - before[0]) / total, (after[1] - before[1]) / total, average)


def free_bytes() -> int | None:
    """Memory that new processes could take; None where unknown."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        return None

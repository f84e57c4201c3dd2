"""CPUs as the system tells them: how many the machine has, and how many this process may use."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path

from edgevlm.cgroups import CGROUP, PROC, group_directories
from edgevlm.errors import UsageError


def machine_cpus() -> int:
    """Returns the number of CPUs of this machine."""
    return os.cpu_count() or 1


def threads_to_use(threads: int | None) -> int:
    """Returns `threads`, or for None as many as this process can use.

    More than that, up to the machine's CPUs, may be asked for: a quota can be shared. Raises UsageError beyond them,
    where each thread would cost memory and gain nothing.
    """
    if threads is None:
        return default_threads()
    most = machine_cpus()
    if not 1 <= threads <= most:
        raise UsageError(
            f"threads is {threads}, expected 1 to {most}, the CPUs of this machine; without it this process uses "
            f"{default_threads()}"
        )
    return threads


def default_threads(proc: Path = PROC, cgroup: Path = CGROUP) -> int:
    """Returns the number of physical cores that this process may use, no more than the CPU quota of its cgroups."""
    try:
        allowed: Sequence[int] = sorted(os.sched_getaffinity(0))
    except AttributeError:
        allowed = range(machine_cpus())
    cores = set()
    for cpu in allowed:
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        try:
            cores.add(siblings.read_text().strip())
        except OSError:
            cores.add(str(cpu))
    quota = cpu_quota(proc, cgroup)
    return max(1, len(cores) if quota is None else min(len(cores), math.ceil(quota)))


def cpu_quota(proc: Path = PROC, cgroup: Path = CGROUP) -> float | None:
    """Returns the CPUs' worth of time that this process's cgroups may use, the least of all levels; None: no limit."""
    quotas = [_quota(version, directory) for version, directory in group_directories("cpu", proc, cgroup)]
    return min((quota for quota in quotas if quota is not None), default=None)


def _quota(version: int, directory: Path) -> float | None:
    try:
        if version == 2:
            limit, period = (directory / "cpu.max").read_text().split()
        else:
            limit, period = (
                (directory / name).read_text().strip() for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us")
            )
        # "max" in version 2, -1 in version 1: no limit
        return int(limit) / int(period) if limit.isdigit() and int(limit) > 0 and int(period) > 0 else None
    except (OSError, ValueError):
        return None

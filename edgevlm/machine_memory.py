"""Memory as the system tells it: what is left, and what this process holds and has held."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

from edgevlm.cgroups import CGROUP, PROC, group_directories


def available_bytes(proc: Path = PROC, cgroup: Path = CGROUP) -> int | None:
    """Returns the bytes that can be used before the system or a cgroup runs out; None when that is unknown."""
    limits: list[int] = []
    try:
        for line in (proc / "meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                limits.append(int(line.split()[1]) * 1024)
    except (OSError, ValueError):
        pass
    for version, directory in group_directories("memory", proc, cgroup):
        limit_names, used_name = _CGROUP_FILES[version]
        for limit_name in limit_names:
            try:
                limit = (directory / limit_name).read_text().strip()
                used = int((directory / used_name).read_text())
            except (OSError, ValueError):
                continue
            # "max" in version 2, a huge number in version 1: no limit
            if limit.isdigit() and int(limit) < 1 << 60:
                limits.append(max(0, int(limit) - used + _reclaimable(directory)))
    return min(limits) if limits else None


_CGROUP_FILES = {
    1: (("memory.limit_in_bytes",), "memory.usage_in_bytes"),
    2: (("memory.max", "memory.high"), "memory.current"),
}
"""Version: (limits, what is used); above memory.high the kernel slows a process down until it has given pages back."""


def _reclaimable(directory: Path) -> int:
    """Returns the bytes of cached files that the cgroup gives back under pressure."""
    try:
        for line in (directory / "memory.stat").read_text().splitlines():
            name, _, value = line.partition(" ")
            if name in ("inactive_file", "total_inactive_file"):
                return int(value)
    except (OSError, ValueError):
        pass
    return 0


def resident_bytes() -> int | None:
    """Returns the resident size of this process now; None where /proc does not tell."""
    return _status_bytes("VmRSS:")


def peak_memory_bytes() -> int:
    """Returns the largest resident size that this process has had."""
    peak = _status_bytes("VmHWM:")
    if peak is not None:
        return peak
    if os.name != "posix":
        return 0
    import resource

    usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return usage if sys.platform == "darwin" else usage * 1024


def _status_bytes(key: str) -> int | None:
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(key):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    return None


def return_freed_memory() -> None:
    """Gives the pages of freed blocks back to the system, where the C library can.

    Parsing a vocabulary of 150,000 leaves some 100 MB of them, which would count beside the weights for good.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(ctypes.c_size_t(0))

"""Control groups: where the limits of this process's groups, and of all groups around them, stand as files.

A process is in one group of version 2, and of version 1 in one group for each controller. Any group on the way to the
root may hold a limit, so the smallest counts. Source: the kernel's Documentation/admin-guide/cgroup-v1, cgroup-v2.rst.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

PROC = Path("/proc")
CGROUP = Path("/sys/fs/cgroup")
"""Where the hierarchies are mounted when /proc does not tell."""


def group_directories(controller: str, proc: Path = PROC, cgroup: Path = CGROUP) -> list[tuple[int, Path]]:
    """Returns (version, directory) of this process's groups that `controller` may limit, and of all around them.

    The innermost come first. The root of each hierarchy is among them also where the process's own group is not to be
    seen, as in a container with a namespace of its own.
    """
    found: list[tuple[int, Path]] = []
    mounts = list(_mounts(proc))
    for line in [*_lines(proc / "self" / "cgroup"), "0::/", f"0:{controller}:/"]:
        _, names, own = [*line.split(":", 2), "", ""][:3]
        if names and controller not in names.split(","):
            continue
        version = 1 if names else 2
        places = [
            (root, at)
            for kind, options, root, at in mounts
            if kind == version and (version == 2 or controller in options)
        ]
        for root, at in places or [("/", cgroup if version == 2 else cgroup / controller)]:
            found += [(version, directory) for directory in _upwards(at, root, own)]
    return list(dict.fromkeys(found))


def _upwards(mounted: Path, root: str, own: str) -> Iterator[Path]:
    """Yields the directory of group `own` and those above it, in a hierarchy whose group `root` is at `mounted`."""
    group = PurePosixPath(own)
    inside = group.relative_to(root) if group.is_relative_to(root) and ".." not in group.parts else PurePosixPath()
    for part in [inside, *inside.parents]:
        yield mounted / part


def _mounts(proc: Path) -> Iterator[tuple[int, tuple[str, ...], str, Path]]:
    """Yields (version, options, group at the mount's root, where it is mounted) of each mounted hierarchy."""
    for line in _lines(proc / "self" / "mountinfo"):
        mount, _, rest = line.partition(" - ")
        fields, kind = mount.split(), rest.split()
        if len(fields) >= 5 and len(kind) >= 3 and kind[0] in ("cgroup", "cgroup2"):
            version, options = 2 if kind[0] == "cgroup2" else 1, tuple(kind[2].split(","))
            yield version, options, _plain(fields[3]), Path(_plain(fields[4]))


def _plain(path: str) -> str:
    """Returns a path of mountinfo without its escapes: a space stands there as backslash 040."""
    for code in ("040", "011", "012", "134"):
        path = path.replace("\\" + code, chr(int(code, 8)))
    return path


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except (OSError, ValueError):
        return []

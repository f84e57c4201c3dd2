"""Runs a command under strace, in a namespace without a network and with a home of its own, and says what it reached.

What counts: a name that is looked up (glibc opens /etc/resolv.conf for that), a socket of the Internet's families, an
address that is no local socket's, and a file that is written outside the places given.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NETWORK = "socket,connect,sendto,sendmsg,sendmmsg"
WRITING = "open,openat,creat,mkdir,mkdirat,rename,renameat,renameat2,link,linkat,symlink,symlinkat,mknod,mknodat"
LOCAL_FAMILIES = ("AF_UNIX", "AF_NETLINK")
"""Sockets of this machine: a service's, and the kernel's list of interfaces."""
DEVICES = ("/dev/", "/proc/")


@dataclass(frozen=True)
class Traced:
    """What a process and its children did."""

    exit_code: int
    out: str
    err: str
    reached: tuple[str, ...]
    """System calls that go to a network, or look a name up."""
    written: tuple[Path, ...]
    """Files and directories made or opened for writing; what a module compiled of itself is left out."""

    def outside(self, *places: Path) -> list[str]:
        """Returns what was written at none of `places`, nor made on the way to one."""
        on_the_way = {parent for place in places for parent in place.parents}
        rest = [path for path in self.written if not any(path.is_relative_to(place) for place in places)]
        return sorted({str(path) for path in rest if path not in on_the_way})


def _prefix() -> list[str]:
    unshare, strace = shutil.which("unshare"), shutil.which("strace")
    if unshare is None or strace is None:
        return []
    return [unshare, "-n" if os.geteuid() == 0 else "-rn", strace, "-f", "--seccomp-bpf"]


@cache
def why_not() -> str | None:
    """Returns why nothing can be traced here, or None."""
    prefix = _prefix()
    if not prefix:
        return "needs strace and unshare (make deps)"
    done = subprocess.run([*prefix, "-o", os.devnull, sys.executable, "-c", ""], capture_output=True, text=True)
    words = " ".join(done.stderr.split())[:200]
    return f"this machine allows no ptrace or no namespace: {words}" if done.returncode else None


def trace(
    command: Sequence[str], work: Path, home: Path, *, stdin: str = "", timeout_s: float = 120, **environment: str
) -> Traced:
    """Runs `command` in the folder `work`, with `home` as HOME and `work`/tmp as the place of temporary files."""
    scratch = work / "tmp"
    for folder in (work, home, scratch):
        folder.mkdir(parents=True, exist_ok=True)
    log = home.parent / f"{home.name}.strace"
    own = ("XDG_", "EDGEVLM_", "MPL", "HF_", "ORT_DISABLE_TELEMETRY", "DO_NOT_TRACK")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(own)}
    paths = {"HOME": str(home), "TMPDIR": str(scratch), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*_prefix(), "-o", str(log), "-s", "200", "-e", f"trace={NETWORK},{WRITING}", "--", *command],
        cwd=work, env={**kept, **paths, **environment}, input=stdin, capture_output=True, text=True, timeout=timeout_s,
    )  # fmt: skip
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    reached = tuple(line for line in lines if _is_reaching(line))
    written = tuple(path for line in lines for path in _written(line, work) if not _is_compiled_module(path))
    return Traced(done.returncode, done.stdout, done.stderr, reached, written)


def _is_reaching(line: str) -> bool:
    call = re.search(r"\b(socket|connect|sendto|sendmsg|sendmmsg)\(", line)
    if call is None:
        return "/etc/resolv.conf" in line
    family = re.search(r"\bA[FP]_[A-Z0-9_]+", line)
    # a send without an address goes where its socket was connected to
    return family is not None and family[0] not in LOCAL_FAMILIES


def _written(line: str, work: Path) -> list[Path]:
    call = re.search(r"\b([a-z0-9]+)\((.*)", line)
    if call is None or call[1] in NETWORK.split(",") or "= -1 " in line:
        return []
    if call[1] in ("open", "openat") and not re.search(r"O_WRONLY|O_RDWR|O_CREAT", line):
        return []
    names = [name for name in re.findall(r'"((?:[^"\\]|\\.)*)"', call[2]) if not name.startswith(DEVICES)]
    return [Path(os.path.normpath(work / name)) for name in names]


def _is_compiled_module(path: Path) -> bool:
    return "__pycache__" in path.parts

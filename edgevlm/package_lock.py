"""One writer at a time: locks on the directories of packages, which end with their process, however it ends.

A lock is the kernel's (flock) on the directory itself, so there is no lock file to be left behind. Readers take none.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgevlm.errors import UsageError

_HELD: dict[tuple[int, Path], int] = {}
"""(thread, directory) -> how many blocks hold it: a step of a longer change takes the lock that the change has."""


@contextmanager
def changing(package: Path) -> Iterator[None]:
    """The package in `package` is this thread's alone to change while the block lasts.

    One that is not there is nobody's. Raises UsageError at once when another process or thread changes it.
    """
    key = (threading.get_ident(), Path(os.path.realpath(package)))
    if not package.is_dir():
        yield
        return
    descriptor = -1 if key in _HELD else os.open(package, os.O_RDONLY)
    try:
        if descriptor >= 0 and not _take(descriptor):
            raise UsageError(
                f"{package}: another edgevlm is changing this package (compile, or export --force); wait until it has "
                "ended, or choose another output"
            )
        _HELD[key] = _HELD.get(key, 0) + 1
        try:
            yield
        finally:
            _HELD[key] -= 1
            if not _HELD[key]:
                del _HELD[key]
    finally:
        if descriptor >= 0:
            os.close(descriptor)


@contextmanager
def settling(folder: Path) -> Iterator[None]:
    """What is checked and made in `folder` within the block happens as one; others wait. For moments only."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def is_held(directory: Path) -> bool:
    """Tells whether some process or thread holds a lock on `directory`; nobody holds one that is gone."""
    try:
        descriptor = os.open(directory, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        return not _take(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def scratch_directory(path: Path) -> Iterator[None]:
    """`path` is a new directory of this block's alone; at the end it is gone, unless it was renamed.

    What a killed process left there is removed. Raises UsageError when a living one works there.
    """
    with settling(path.parent):
        if path.is_dir() and not path.is_symlink():
            if is_held(path):
                raise UsageError(f"{path}: another edgevlm is working here; wait until it has ended")
            shutil.rmtree(path)
        path.mkdir()
        descriptor = os.open(path, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    key = (threading.get_ident(), Path(os.path.realpath(path)))
    _HELD[key] = 1
    try:
        yield
    finally:
        del _HELD[key]
        shutil.rmtree(path, ignore_errors=True)
        os.close(descriptor)


def _take(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True

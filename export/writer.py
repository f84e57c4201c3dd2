"""PackageWriter: a package appears whole or not at all.

Everything is written to `.<name>.<random>.partial` beside the target, on the same filesystem; `commit` syncs files and
directories and renames. While a writer works it holds a lock on its directory, so a later run can tell the leftovers of
a killed one (no lock), which it removes, from the work of a running one, beside which it refuses to begin. A package
that is to be replaced is locked, too: nothing else changes it meanwhile.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType

from edgevlm.errors import BackendError, PackageError, UsageError
from edgevlm.package import PARTIAL_SUFFIX
from edgevlm.package_lock import changing, is_held, settling
from edgevlm.spec import MANIFEST_NAME, FileEntry, Manifest
from edgevlm.strict_json import to_json

_ASIDE_SUFFIX = ".replaced" + PARTIAL_SUFFIX
"""Ends the name of an old package between the two renames of a forced replacement."""
_HASH_BLOCK_BYTES = 1 << 20

HashProgress = Callable[[int], None]


class PackageWriter:
    """Builds a package in `directory`; leaving the `with` block without `commit` removes everything.

    Raises UsageError when `target` exists and `force` is off, when it is not a package, or when another process or
    thread is writing it; BackendError when fewer than `needed_bytes` are free.
    """

    def __init__(self, target: Path, *, force: bool = False, needed_bytes: int = 0) -> None:
        self.target = Path(target).resolve()
        self._needed_bytes = needed_bytes
        self._hashed: dict[str, tuple[int, int, FileEntry]] = {}
        self._lock = -1
        parent = self.target.parent
        with _disk_errors(parent, needed_bytes):
            parent.mkdir(parents=True, exist_ok=True)
            with settling(parent):
                remove_leftovers(self.target)
                _check_alone(self.target)
        _check_target(self.target, force)
        _check_space(parent, needed_bytes)
        self._force = force
        self._replaced = ExitStack()
        self.directory = parent / f".{self.target.name}.{secrets.token_hex(4)}{PARTIAL_SUFFIX}"

    def __enter__(self) -> PackageWriter:
        with _disk_errors(self.target.parent, self._needed_bytes), ExitStack() as replaced:
            with settling(self.target.parent):
                _check_alone(self.target)
                _check_target(self.target, self._force)
                replaced.enter_context(changing(self.target))
                self.directory.mkdir()
                self._lock = os.open(self.directory, os.O_RDONLY)
                fcntl.flock(self._lock, fcntl.LOCK_EX)
            self._replaced = replaced.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        shutil.rmtree(self.directory, ignore_errors=True)
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1
        self._replaced.close()

    @contextmanager
    def writing(self) -> Iterator[Path]:
        """Gives the directory; a full disk inside the block becomes a BackendError with the numbers."""
        with _disk_errors(self.target.parent, self._needed_bytes):
            yield self.directory

    def write(self, relative: str, data: bytes) -> None:
        """Writes one file of the package; `relative` uses forward slashes."""
        with self.writing() as directory:
            path = directory.joinpath(*relative.split("/"))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)

    def files(self, progress: HashProgress | None = None) -> tuple[FileEntry, ...]:
        """Returns every file but the manifest with size and sha256; unchanged files are not read a second time."""
        entries = []
        for path in sorted(self.directory.rglob("*")):
            relative = path.relative_to(self.directory).as_posix()
            if path.is_file() and relative != MANIFEST_NAME:
                entries.append(self._entry(path, relative, progress))
        return tuple(entries)

    def _entry(self, path: Path, relative: str, progress: HashProgress | None) -> FileEntry:
        status = path.stat()
        known = self._hashed.get(relative)
        if known is not None and known[:2] == (status.st_size, status.st_mtime_ns):
            return known[2]
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while block := file.read(_HASH_BLOCK_BYTES):
                digest.update(block)
                if progress is not None:
                    progress(len(block))
        entry = FileEntry(relative, status.st_size, digest.hexdigest())
        self._hashed[relative] = (status.st_size, status.st_mtime_ns, entry)
        return entry

    def write_manifest(self, manifest: Manifest) -> None:
        """Writes edgevlm.json."""
        text = json.dumps(to_json(manifest), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        self.write(MANIFEST_NAME, text.encode("utf-8"))

    def commit(self) -> Path:
        """Makes the package durable, gives it its name and returns it. An old package goes only after that."""
        with self.writing() as directory:
            for path in sorted(directory.rglob("*")):
                _sync(path)
            _sync(directory)
            aside: Path | None = None
            if self.target.exists():
                aside = self.target.parent / f".{self.target.name}.{secrets.token_hex(4)}{_ASIDE_SUFFIX}"
                self.target.rename(aside)
            try:
                directory.rename(self.target)
            except BaseException:
                if aside is not None:
                    aside.rename(self.target)
                raise
            _sync(self.target.parent)
        if aside is not None:
            shutil.rmtree(aside, ignore_errors=True)
        return self.target


def remove_leftovers(target: Path) -> list[Path]:
    """Removes what killed exports to `target` left beside it and returns the removed paths.

    A package that a killed replacement had set aside gets its name back when nothing has taken it.
    """
    removed = []
    for path in _partial(target):
        if is_held(path):
            continue
        if path.name.endswith(_ASIDE_SUFFIX) and not target.exists():
            path.rename(target)
            continue
        shutil.rmtree(path, ignore_errors=True)
        removed.append(path)
    return removed


def _escape(name: str) -> str:
    return "".join(f"[{character}]" if character in "*?[" else character for character in name)


def _check_alone(target: Path) -> None:
    """Raises UsageError while another writer works on `target`; its leftovers are gone already."""
    if any(is_held(path) for path in _partial(target)):
        raise UsageError(
            f"{target}: another edgevlm is exporting to this place; wait until it has ended, or choose another output"
        )


def _partial(target: Path) -> list[Path]:
    """Returns the directories that writers of `target` have made beside it."""
    found = sorted(target.parent.glob(f".{_escape(target.name)}.*{PARTIAL_SUFFIX}"))
    return [path for path in found if path.is_dir() and not path.is_symlink()]


def _check_target(target: Path, force: bool) -> None:
    if not target.exists():
        return
    if not target.is_dir():
        raise UsageError(f"{target}: exists and is not a directory; choose another output")
    is_empty = not any(target.iterdir())
    if not is_empty and not (target / MANIFEST_NAME).is_file():
        raise UsageError(f"{target}: exists and is not a package (no {MANIFEST_NAME}); choose another output")
    if not is_empty and not force:
        raise UsageError(f"{target}: the package exists; choose another output, or --force to replace it")


def _check_space(parent: Path, needed_bytes: int) -> None:
    free_bytes = shutil.disk_usage(parent).free
    if free_bytes < needed_bytes:
        raise BackendError(
            f"{parent}: the package needs about {needed_bytes / 1e6:,.0f} MB, {free_bytes / 1e6:,.0f} MB are free; "
            "free some space or choose another output"
        )


@contextmanager
def _disk_errors(parent: Path, needed_bytes: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            free_bytes = shutil.disk_usage(parent).free
            raise BackendError(
                f"{parent}: the disk is full: the package needs about {needed_bytes / 1e6:,.0f} MB, "
                f"{free_bytes / 1e6:,.0f} MB are left; nothing was kept, free some space or choose another output"
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG):
            raise PackageError(f"{error.filename or parent}: cannot be written ({error.strerror})") from error
        raise


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

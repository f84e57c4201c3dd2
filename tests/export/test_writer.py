"""A package appears whole or not at all: names, leftovers, full disks, kills, forced replacement."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from edgevlm.errors import BackendError, PackageError, UsageError
from edgevlm.package import PARTIAL_SUFFIX, open_package
from edgevlm.package_lock import changing, scratch_directory
from edgevlm.spec import MANIFEST_NAME
from export.writer import PackageWriter, remove_leftovers

ROOT = Path(__file__).resolve().parents[2]


def write_one(target: Path, content: bytes, **options: object) -> Path:
    with PackageWriter(target, **options) as writer:  # type: ignore[arg-type]
        writer.write(MANIFEST_NAME, b"{}")
        writer.write("onnx/a.onnx", content)
        return writer.commit()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_commit_gives_the_name_and_leaves_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "new" / "model-edgevlm-w8"
    assert write_one(target, b"abc") == target
    assert names(tmp_path / "new") == [target.name]
    assert (target / "onnx" / "a.onnx").read_bytes() == b"abc"


def test_files_have_sizes_and_hashes_and_no_manifest(tmp_path: Path) -> None:
    with PackageWriter(tmp_path / "p") as writer:
        writer.write("onnx/b.bin", b"12345")
        writer.write("a.txt", b"")
        writer.write(MANIFEST_NAME, b"{}")
        read: list[int] = []
        entries = writer.files(read.append)
        assert [(e.path, e.size_bytes) for e in entries] == [("a.txt", 0), ("onnx/b.bin", 5)]
        assert entries[1].sha256 == hashlib.sha256(b"12345").hexdigest()
        writer.write("a.txt", b"changed")
        assert writer.files(read.append)[0].size_bytes == 7
        assert sum(read) == 5 + 7, "an unchanged file is not read again"
    assert names(tmp_path) == []


@pytest.mark.parametrize("error", [RuntimeError("boom"), KeyboardInterrupt()])
def test_an_error_or_ctrl_c_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)), PackageWriter(tmp_path / "p") as writer:
        writer.write("a", b"a")
        raise error
    assert names(tmp_path) == []


def test_an_unfinished_directory_opens_as_no_package(tmp_path: Path) -> None:
    with PackageWriter(tmp_path / "p") as writer:
        assert writer.directory.parent == tmp_path and writer.directory.name.endswith(PARTIAL_SUFFIX)
        writer.write(MANIFEST_NAME, b"{}")
        with pytest.raises(PackageError, match="interrupted export"):
            open_package(writer.directory)


def test_an_existing_package_needs_force(tmp_path: Path) -> None:
    target = write_one(tmp_path / "p", b"old")
    with pytest.raises(UsageError, match="--force"):
        PackageWriter(target)
    assert (target / "onnx/a.onnx").read_bytes() == b"old"
    write_one(target, b"new", force=True)
    assert (target / "onnx/a.onnx").read_bytes() == b"new" and names(tmp_path) == ["p"]


def test_force_keeps_the_old_package_until_the_new_one_is_whole(tmp_path: Path) -> None:
    target = write_one(tmp_path / "p", b"old")
    with pytest.raises(RuntimeError), PackageWriter(target, force=True) as writer:
        writer.write("onnx/a.onnx", b"half")
        assert (target / "onnx/a.onnx").read_bytes() == b"old"
        raise RuntimeError("boom")
    assert (target / "onnx/a.onnx").read_bytes() == b"old" and names(tmp_path) == ["p"]


def test_a_rename_that_fails_puts_the_old_package_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = write_one(tmp_path / "p", b"old")
    rename = Path.rename

    def fail_second(path: Path, new: Path) -> Path:
        if path.name.endswith(PARTIAL_SUFFIX) and ".replaced" not in path.name:
            raise OSError(errno.EIO, "input/output error")
        return rename(path, new)

    monkeypatch.setattr(Path, "rename", fail_second)
    with pytest.raises(OSError, match="input/output"):
        write_one(target, b"new", force=True)
    assert (target / "onnx/a.onnx").read_bytes() == b"old" and names(tmp_path) == ["p"]


@pytest.mark.parametrize("force", [False, True])
def test_a_directory_that_is_no_package_is_never_replaced(tmp_path: Path, force: bool) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("x")
    with pytest.raises(UsageError, match="not a package"):
        PackageWriter(tmp_path / "home", force=force)
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="not a directory"):
        PackageWriter(tmp_path / "file", force=force)


def test_an_empty_directory_is_filled(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    write_one(tmp_path / "p", b"new")
    assert (tmp_path / "p/onnx/a.onnx").read_bytes() == b"new"


def test_too_little_space_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"needs about 1,000,000,000 MB, [\d,]+ MB are free"):
        PackageWriter(tmp_path / "p", needed_bytes=10**15)
    assert names(tmp_path) == []


def test_a_disk_that_fills_up_is_told_with_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with PackageWriter(tmp_path / "p", needed_bytes=5_000_000) as writer:
        monkeypatch.setattr(Path, "write_bytes", full)
        with pytest.raises(BackendError, match=r"disk is full: the package needs about 5 MB, [\d,]+ MB are left"):
            writer.write("a", b"a")
    assert names(tmp_path) == []


def test_a_real_small_disk_fills_up(tmp_path: Path) -> None:
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a tmpfs needs root")
    try:
        with pytest.raises(BackendError, match="disk is full"):
            write_one(tmp_path / "p", bytes(2_000_000))
        assert names(tmp_path) == []
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_parent_is_one_sentence(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(PackageError, match="cannot be written"):
        write_one(tmp_path / "p", b"x")
    tmp_path.chmod(0o700)


def test_a_parent_that_is_a_file_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(PackageError, match="cannot be written"):
        write_one(tmp_path / "file" / "p", b"x")


KILLED = """
import sys, time
from pathlib import Path
from export.writer import PackageWriter
with PackageWriter(Path(sys.argv[1]), force=True) as writer:
    writer.write("edgevlm.json", b"{}")
    writer.write("onnx/a.onnx", b"half")
    print("ready", flush=True)
    time.sleep(60)
"""


def start_and_wait(target: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(target)], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("has_old", [False, True])
def test_kill_9_leaves_the_old_state_and_the_next_run_cleans_up(tmp_path: Path, has_old: bool) -> None:
    target = tmp_path / "p"
    if has_old:
        write_one(target, b"old")
    process = start_and_wait(target)
    try:
        assert remove_leftovers(target) == [], "a running export is left alone"
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    partial = [path for path in tmp_path.iterdir() if path != target]
    assert len(partial) == 1 and partial[0].name.endswith(PARTIAL_SUFFIX)
    with pytest.raises(PackageError):
        open_package(partial[0])
    assert target.exists() == has_old
    write_one(target, b"new", force=True)
    assert names(tmp_path) == ["p"] and (target / "onnx/a.onnx").read_bytes() == b"new"


def test_a_package_set_aside_by_a_killed_replacement_comes_back(tmp_path: Path) -> None:
    aside = tmp_path / ".p.0a1b2c3d.replaced.partial"
    aside.mkdir()
    (aside / MANIFEST_NAME).write_text("{}")
    with pytest.raises(UsageError, match="--force"):
        PackageWriter(tmp_path / "p")
    assert names(tmp_path) == ["p"]


def test_leftovers_of_other_targets_stay(tmp_path: Path) -> None:
    for name in (".p2.00000000.partial", ".q.00000000.partial", "p.partial"):
        (tmp_path / name).mkdir()
    write_one(tmp_path / "p", b"x")
    assert names(tmp_path) == [".p2.00000000.partial", ".q.00000000.partial", "p", "p.partial"]


def test_a_manifest_with_numbers_that_json_lacks_is_refused(tmp_path: Path) -> None:
    from tests.edgevlm.tiny_package import write_package

    source = write_package(tmp_path / "tiny")
    manifest = open_package(source).manifest
    with PackageWriter(tmp_path / "p") as writer:
        writer.write_manifest(manifest)
        written = json.loads((writer.directory / MANIFEST_NAME).read_text())
        assert written == json.loads((source / MANIFEST_NAME).read_text())


def stopped(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()


def test_an_export_beside_another_to_the_same_place_is_refused_at_once(tmp_path: Path) -> None:
    target = tmp_path / "p"
    process = start_and_wait(target)
    try:
        with pytest.raises(UsageError, match="another edgevlm is exporting to this place"):
            PackageWriter(target, force=True)
        write_one(tmp_path / "q", b"another place is free")
    finally:
        stopped(process)
    write_one(target, b"new")
    assert names(tmp_path) == ["p", "q"]


def test_a_writer_that_was_made_before_the_other_began_is_refused_too(tmp_path: Path) -> None:
    """The check and the directory are one step."""
    early = PackageWriter(tmp_path / "p", force=True)
    process = start_and_wait(tmp_path / "p")
    try:
        with pytest.raises(UsageError, match="another edgevlm"), early:
            pass
    finally:
        stopped(process)


RACE = """
import sys, time
from pathlib import Path
from edgevlm.errors import UsageError
from export.writer import PackageWriter
while time.time() < float(sys.argv[2]):
    pass
try:
    with PackageWriter(Path(sys.argv[1])) as writer:
        writer.write("edgevlm.json", sys.argv[3].encode())
        time.sleep(0.3)
        writer.commit()
        print(sys.argv[3])
except UsageError as error:
    print("refused")
"""


def test_of_exports_that_begin_together_one_wins_and_the_others_say_so(tmp_path: Path) -> None:
    start = f"{time.time() + 1.5}"
    words = [sys.executable, "-c", RACE, str(tmp_path / "p"), start]
    runs = [subprocess.Popen([*words, f"{i}"], stdout=subprocess.PIPE, text=True, cwd=ROOT) for i in range(4)]
    said = [run.communicate(timeout=60)[0].strip() for run in runs]
    (winner,) = [word for word in said if word != "refused"]
    assert (tmp_path / "p" / MANIFEST_NAME).read_text() == winner
    assert names(tmp_path) == ["p"]


CHANGING = """
import sys, time
from pathlib import Path
from edgevlm.package_lock import changing
with changing(Path(sys.argv[1])):
    print("ready", flush=True)
    time.sleep(60)
"""


def test_a_package_that_is_compiled_is_not_replaced(tmp_path: Path) -> None:
    target = write_one(tmp_path / "p", b"old")
    command = [sys.executable, "-c", CHANGING, str(target)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    try:
        with pytest.raises(UsageError, match="another edgevlm is changing this package"):
            write_one(target, b"new", force=True)
        with pytest.raises(UsageError, match="another edgevlm is changing"), changing(target):
            pass
    finally:
        stopped(process)
    assert (target / "onnx/a.onnx").read_bytes() == b"old" and names(tmp_path) == ["p"]
    write_one(target, b"new", force=True)
    assert (target / "onnx/a.onnx").read_bytes() == b"new"


def test_a_package_that_is_replaced_is_not_compiled(tmp_path: Path) -> None:
    target = write_one(tmp_path / "p", b"old")
    process = start_and_wait(target)
    try:
        with pytest.raises(UsageError, match="another edgevlm is changing"), changing(target):
            pass
    finally:
        stopped(process)
    with changing(target), changing(tmp_path / "." / "p"):  # a step of a longer change
        (target / "x").write_text("x")


def test_a_lock_is_of_one_thread(tmp_path: Path) -> None:
    refused = []

    def other() -> None:
        try:
            with changing(tmp_path):
                pass
        except UsageError as error:
            refused.append(error)

    with changing(tmp_path):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    other()
    assert len(refused) == 1


def test_a_scratch_directory_is_of_one_and_outlives_nobody(tmp_path: Path) -> None:
    path = tmp_path / ".device.compiling"
    path.mkdir()
    (path / "leftover").write_text("of a killed run")
    with scratch_directory(path):
        assert not any(path.iterdir())
        with pytest.raises(UsageError, match="another edgevlm is working here"), scratch_directory(path):
            pass
        with changing(path):  # compiling the copy is a step of making it
            path.rename(tmp_path / "device")
    assert names(tmp_path) == ["device"]

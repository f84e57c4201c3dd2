"""A phone that the real adb connects to: adb's wire protocol over TCP, on a folder and this machine's shell.

It speaks what Android's daemon speaks (CNXN, OPEN, OKAY, WRTE, CLSE; `shell,v2` and the first `sync` protocol). /sdcard
is a folder; getprop, pm, am and pidof are small scripts, everything else is this machine's own program of that name.
"""

from __future__ import annotations

import os
import queue
import socket
import struct
import subprocess
import threading
from pathlib import Path

_NAMES = (b"CNXN", b"OPEN", b"OKAY", b"CLSE", b"WRTE")
_CNXN, _OPEN, _OKAY, _CLSE, _WRTE = (int.from_bytes(name, "little") for name in _NAMES)
_HEADER = struct.Struct("<6I")
_VERSION, _MAX_DATA = 0x01000001, 4096
_BANNER = b"device::ro.product.name=fake;ro.product.model=Fake;ro.product.device=fake;features=shell_v2,cmd"
_STDOUT, _STDERR, _EXIT = 1, 2, 3
_WAIT_S = 30.0

SCRIPTS = {
    "getprop": 'cat "$PHONE/props/$1"',
    "pm": '[ -e "$PHONE/app" ] && echo "package:/data/app/base.apk"',
    "am": 'echo "$*" >>"$PHONE/am"\ncat "$PHONE/am-answer" 2>/dev/null || echo "Starting: Intent { act=$5 cmp=$3 }"\n'
    'if [ "$5" = org.edgevlm.app.BENCHMARK ] && [ -e "$PHONE/benchmark" ]; then\n'
    '  cp "$PHONE/benchmark" "$PHONE/sdcard/Android/data/org.edgevlm.app/files/benchmark.json"\nfi',
    "pidof": '[ -e "$PHONE/alive" ] && echo 4711',
}  # fmt: skip
PROPS = {
    "ro.product.model": "Fake 9",
    "ro.build.version.release": "14",
    "ro.build.version.sdk": "34",
    "ro.product.cpu.abilist": "arm64-v8a,armeabi-v7a,armeabi",
}


class FakePhone:
    """A phone in the folder `root`; `port` is where adb finds it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.full = False
        """Whether nothing more can be written."""
        self.files = root / "sdcard/Android/data/org.edgevlm.app/files"
        self.files.mkdir(parents=True)
        for name in ("props", "bin"):
            (root / name).mkdir()
        for name, value in PROPS.items():
            (root / "props" / name).write_text(f"{value}\n")
        for name, script in SCRIPTS.items():
            (root / "bin" / name).write_text(f"#!/bin/sh\n{script}\n")
            (root / "bin" / name).chmod(0o755)
        for name in ("app", "alive"):
            (root / name).touch()
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        self._connections: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Unplugs the phone."""
        self._server.close()
        for connection in self._connections:
            connection.shutdown(socket.SHUT_RDWR)
        self._connections.clear()

    def place(self, path: str) -> str:
        """Where a path of the phone stands here."""
        return path.replace("/sdcard", f"{self.root}/sdcard")

    def started(self) -> list[str]:
        """What `am` was given, one line a call."""
        log = self.root / "am"
        return log.read_text().splitlines() if log.exists() else []

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:
                return
            self._connections.append(connection)
            threading.Thread(target=_Connection(self, connection).serve, daemon=True).start()


class _Connection:
    """One computer's connection."""

    def __init__(self, phone: FakePhone, connection: socket.socket) -> None:
        self.phone = phone
        self._socket = connection
        self._input = connection.makefile("rb")
        self._lock = threading.Lock()
        self._streams: dict[int, _Stream] = {}

    def serve(self) -> None:
        """Answers until the computer hangs up."""
        try:
            while header := self._input.read(_HEADER.size):
                command, remote, local, size, _, magic = _HEADER.unpack(header)
                assert magic == command ^ 0xFFFFFFFF
                self._receive(command, remote, local, self._input.read(size))
        except (OSError, ValueError, struct.error):
            return

    def _receive(self, command: int, remote: int, local: int, data: bytes) -> None:
        stream = self._streams.get(local)
        if command == _CNXN:
            self.send(_CNXN, _VERSION, _MAX_DATA, _BANNER)
        elif command == _OPEN:
            made = _Stream(self, len(self._streams) + 1, remote)
            self._streams[made.local] = made
            self.send(_OKAY, made.local, remote)
            threading.Thread(target=made.serve, args=(data.rstrip(b"\0").decode(),), daemon=True).start()
        elif stream is not None and command == _OKAY:
            stream.acknowledged.release()
        elif stream is not None and command == _WRTE:
            stream.given.put(data)
            self.send(_OKAY, local, remote)
        elif stream is not None and command == _CLSE:
            stream.given.put(b"")

    def send(self, command: int, local: int, remote: int, data: bytes = b"") -> None:
        """Sends one message."""
        with self._lock:
            self._socket.sendall(_HEADER.pack(command, local, remote, len(data), 0, command ^ 0xFFFFFFFF) + data)


class _Stream:
    """One service on a connection."""

    def __init__(self, connection: _Connection, local: int, remote: int) -> None:
        self.local, self.remote = local, remote
        self.given: queue.Queue[bytes] = queue.Queue()
        self.acknowledged = threading.Semaphore(0)
        self._connection = connection
        self._phone = connection.phone
        self._rest = b""

    def serve(self, service: str) -> None:
        """Runs the service to its end."""
        kind, _, argument = service.partition(":")
        try:
            if kind.startswith("shell,v2"):
                self._shell(argument)
            elif kind == "sync":
                self._sync()
            self._connection.send(_CLSE, self.local, self.remote)
        except (OSError, EOFError):
            return

    def _write(self, data: bytes) -> None:
        for at in range(0, len(data), _MAX_DATA):
            self._connection.send(_WRTE, self.local, self.remote, data[at : at + _MAX_DATA])
            if not self.acknowledged.acquire(timeout=_WAIT_S):
                raise EOFError

    def _read(self, size: int) -> bytes:
        while len(self._rest) < size:
            more = self.given.get(timeout=_WAIT_S)
            if not more:
                raise EOFError
            self._rest += more
        found, self._rest = self._rest[:size], self._rest[size:]
        return found

    def _shell(self, command: str) -> None:
        root = self._phone.root
        environment = {"PATH": f"{root}/bin:{os.environ['PATH']}", "PHONE": str(root)}
        done = subprocess.run(["sh", "-c", self._phone.place(command)], capture_output=True, env=environment)
        parts = [(_STDOUT, done.stdout), (_STDERR, done.stderr), (_EXIT, bytes([done.returncode]))]
        self._write(b"".join(struct.pack("<BI", kind, len(data)) + data for kind, data in parts if data))

    def _sync(self) -> None:
        while True:
            request, size = struct.unpack("<4sI", self._read(8))
            argument = self._read(size).decode()
            if request == b"QUIT":
                return
            if request in (b"STAT", b"LSTT"):
                path = Path(self._phone.place(argument))
                found = path.stat() if path.exists() else None
                numbers = (found.st_mode, found.st_size, int(found.st_mtime)) if found else (0, 0, 0)
                self._write(struct.pack("<4s3I", request, *numbers))
            elif request == b"SEND":
                self._receive_file(Path(self._phone.place(argument.rpartition(",")[0])))

    def _receive_file(self, target: Path) -> None:
        with target.open("wb") as file:
            while True:
                kind, size = struct.unpack("<4sI", self._read(8))
                if kind == b"DONE":
                    break
                file.write(self._read(size)[: 0 if self._phone.full else None])
        words = b"write failed: No space left on device" if self._phone.full else b""
        self._write(struct.pack("<4sI", b"FAIL" if words else b"OKAY", len(words)) + words)

"""A phone through adb, Android's own tool: which one, commands on it, files to it."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgevlm.errors import BackendError, UsageError

SERIAL_VARIABLE = "ANDROID_SERIAL"
"""adb's own variable for the phone that is meant."""
SHELL_TIMEOUT_S = 60.0
PUSH_TIMEOUT_S = 3600.0
_DEVICE_LINE = re.compile(r"(\S+)\s+(no permissions|[a-z]+)\b")
_ADVICE = {
    "unauthorized": "unlock it and accept the question about USB debugging",
    "authorizing": "unlock it and accept the question about USB debugging",
    "no permissions": "this user may not open USB devices; Debian's android-sdk-platform-tools-common has the rules",
    "offline": "it does not answer; unplug it and plug it in again",
}
"""What to do about a phone that is there but in another state than `device`."""


@dataclass(frozen=True)
class Device:
    """One phone that takes commands."""

    adb: str
    serial: str

    def shell(self, *words: str, timeout_s: float = SHELL_TIMEOUT_S) -> str:
        """Runs a command on the phone and returns its output. Raises BackendError with its own words when it fails."""
        done = self.try_shell(*words, timeout_s=timeout_s)
        if done.returncode:
            raise BackendError(f"{words[0]} failed on {self.serial}: {_last_words(done)}")
        return done.stdout

    def try_shell(self, *words: str, timeout_s: float = SHELL_TIMEOUT_S) -> subprocess.CompletedProcess[str]:
        """As `shell`, but a command that fails is returned; one that adb cannot begin is still an error."""
        done = _run([self.adb, "-s", self.serial, "shell", shlex.join(words)], timeout_s)
        if done.returncode and done.stderr.startswith(("error:", "adb: ")):
            raise BackendError(f"{self.serial} is gone: adb says {done.stderr.strip()!r}")
        return done

    def push(self, source: Path, target: str) -> None:
        """Copies a file. Raises BackendError with adb's words when it does not arrive."""
        done = _run([self.adb, "-s", self.serial, "push", str(source), target], PUSH_TIMEOUT_S)
        if done.returncode:
            raise BackendError(f"{source.name} does not arrive on {self.serial}: {_last_words(done)}")


def find_device(serial: str | None = None) -> Device:
    """Returns the phone named by `serial`, or by ANDROID_SERIAL, or the only one there is.

    Raises BackendError when there is no adb or no phone that takes commands, UsageError when one has to be named.
    """
    adb = shutil.which("adb")
    if adb is None:
        raise BackendError("there is no adb on this machine; install it (Debian: apt-get install -y adb)")
    listed = _run([adb, "devices"], SHELL_TIMEOUT_S)
    if listed.returncode:
        raise BackendError(f"adb cannot list the phones: {_last_words(listed)}")
    states = parse_devices(listed.stdout)
    wanted = serial or os.environ.get(SERIAL_VARIABLE)
    if wanted is not None:
        if wanted not in states:
            raise BackendError(f"adb sees no phone {wanted!r}; it sees: {', '.join(states) or 'none'}")
        states = {wanted: states[wanted]}
    if not states:
        raise BackendError("adb sees no phone; plug one in and switch on USB debugging in its developer options")
    ready = [name for name, state in states.items() if state == "device"]
    if len(ready) > 1:
        raise UsageError(f"there are several phones ({', '.join(ready)}); name one with --serial")
    if not ready:
        name, state = next(iter(states.items()))
        advice = _ADVICE.get(state, "start Android on it")
        raise BackendError(f"the phone {name} takes no commands, its state is {state!r}; {advice}")
    return Device(adb, ready[0])


def parse_devices(output: str) -> dict[str, str]:
    """Returns serial → state of what `adb devices` prints; lines about adb's own daemon are passed over."""
    _, found, lines = output.partition("List of devices attached")
    matches = (_DEVICE_LINE.match(line) for line in lines.splitlines() if found and not line.startswith("*"))
    return {match[1]: match[2] for match in matches if match is not None}


def _run(command: Sequence[str], timeout_s: float) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=timeout_s, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired:
        reason = f"adb has not answered for {timeout_s:.0f} s; unplug the phone and plug it in again"
        raise BackendError(reason) from None


def _last_words(done: subprocess.CompletedProcess[str]) -> str:
    """The line that says why: adb prints its summary behind it."""
    lines = [line for line in f"{done.stderr}\n{done.stdout}".splitlines() if line.strip()]
    errors = [line for line in lines if "error: " in line]
    return [*lines, *errors][-1] if lines else f"exit code {done.returncode}, without a word"

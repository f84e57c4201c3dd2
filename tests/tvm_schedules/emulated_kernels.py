"""Kernels of another machine, called through a pipe to an emulated process (kernel_caller.c of its folder)."""

from __future__ import annotations

import os
import struct
import subprocess
from typing import Any

import numpy as np
from numpy.typing import NDArray


class EmulatedKernels:
    """The kernels that `command` serves; `call` has the kernel's C arguments."""

    def __init__(
        self, command: list[str], prefix: str, machine: str, environment: dict[str, str] | None = None
    ) -> None:
        """`prefix` stands before each kernel's name; `machine` names the emulated one in messages."""
        self._prefix, self._machine = prefix, machine
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, **(environment or {})}
        )

    def call(self, kernel: str, *arguments: Any) -> int:
        """Calls with arrays (changed in place), ints and floats; returns the kernel's result.

        Raises AssertionError when the process dies: an access outside a buffer, or an instruction the CPU lacks.
        """
        name = f"{self._prefix}{kernel}".encode()
        request = [struct.pack("<I", len(name)), name, struct.pack("<I", len(arguments))]
        arrays: list[NDArray[Any]] = []
        for argument in arguments:
            if isinstance(argument, np.ndarray):
                if not argument.flags.c_contiguous:
                    raise ValueError("kernels take contiguous arrays")
                request += [struct.pack("<cQ", b"b", argument.nbytes), argument.tobytes()]
                arrays.append(argument)
            elif isinstance(argument, float):
                request.append(struct.pack("<cfI", b"f", argument, 0))
            else:
                request.append(struct.pack("<cq", b"i", int(argument)))
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(b"".join(request))
            self._process.stdin.flush()
        except BrokenPipeError:
            pass
        reply = self._process.stdout.read(4)
        assert len(reply) == 4, f"{name.decode()} on {self._machine} ended with {self._process.wait()}"
        for array in arrays:
            data = self._process.stdout.read(array.nbytes)
            assert len(data) == array.nbytes, f"{name.decode()} on {self._machine} ended with {self._process.wait()}"
            array[...] = np.frombuffer(data, array.dtype).reshape(array.shape)
        return int(struct.unpack("<i", reply)[0])

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(10)

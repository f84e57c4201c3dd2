"""The `tokenizers` library's own failures as our errors: bare exceptions, and panics of its Rust code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from edgevlm.errors import PackageError


@contextmanager
def tokenizers_errors(where: str, doing: str, hint: str = "; export the model again") -> Iterator[None]:
    """Raises PackageError, 'WHERE DOING (reason)' and the hint, for whatever the library raises in the block.

    A file that contradicts itself is found when it is read, or only at the first text: the library raises a bare
    Exception, or panics, which Python sees as a BaseException of pyo3. Python's own errors pass.
    """
    try:
        yield
    except BaseException as error:
        is_panic = type(error).__name__ == "PanicException"
        if not is_panic and type(error) is not Exception:
            raise
        reason = (str(error).strip().splitlines() or ["no reason given"])[0]
        raise PackageError(f"{where} {doing} ({reason[:300]}){hint}") from None

"""The error tree: every failure a user can cause or meet, each class with its process exit code.

A message says what failed, on which thing, what was expected and found, and what to do next.
"""

from __future__ import annotations

MAX_MESSAGE_CHARS = 2000
"""A damaged file can put a megabyte where a name was expected; its beginning and end are enough to find it."""


class EdgeVLMError(Exception):
    """Root of all errors raised on purpose; `exit_code` is what the command line returns."""

    exit_code = 1

    def __str__(self) -> str:
        """Returns the message, its middle left out where it is longer than MAX_MESSAGE_CHARS."""
        text = super().__str__()
        if len(text) <= MAX_MESSAGE_CHARS:
            return text
        kept = MAX_MESSAGE_CHARS // 2
        return f"{text[:kept]} … {len(text) - 2 * kept:,} characters … {text[-kept:]}"


class UsageError(EdgeVLMError):
    """A wrong argument, option or call."""

    exit_code = 2


class PackageError(EdgeVLMError):
    """A package or checkpoint on disk is missing, damaged, unsafe or of another schema version."""

    exit_code = 3


class UnsupportedModelError(EdgeVLMError):
    """The checkpoint is sound, but it asks for an architecture or a field value that is not implemented."""

    exit_code = 4


class ParityError(EdgeVLMError):
    """A number that must agree does not: transformers parity, quantisation bounds, placeholder counts."""

    exit_code = 5


class ImageError(EdgeVLMError):
    """A picture cannot be decoded or is outside the accepted sizes."""

    exit_code = 6


class ContextFullError(EdgeVLMError):
    """The prompt does not fit into the context; the message carries the numbers."""

    exit_code = 7


class BackendError(EdgeVLMError):
    """The machine cannot run this: missing CPU features, memory budget, a missing runtime library."""

    exit_code = 8


INTERRUPTED_EXIT_CODE = 130
"""Returned on Ctrl-C (128 + SIGINT)."""
TERMINATED_EXIT_CODE = 143
"""Returned on SIGTERM (128 + SIGTERM)."""

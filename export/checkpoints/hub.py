"""Snapshots of Hub repositories, through huggingface_hub and its cache."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from edgevlm.errors import BackendError, PackageError
from edgevlm.telemetry import switch_off
from export.checkpoints.snapshot import CARRIED_FILES, INDEX

SMALL = (*CARRIED_FILES, INDEX)
PATTERNS = (*SMALL, "*.safetensors")
"""What is fetched of a repository."""


def hub_snapshot(
    repository: str,
    revision: str | None,
    *,
    cached_only: bool = False,
    check: Callable[[Path], None] | None = None,
) -> Path:
    """Returns the snapshot directory of `repository` at `revision` (default: main), fetched when it is not cached.

    `check` gets the directory once its small files are there, and raises where its weights would be fetched in vain.

    Raises BackendError without huggingface_hub, PackageError when the repository cannot be had.
    """
    if check is not None:
        check(_fetched(repository, revision, SMALL, cached_only=cached_only))
    return _fetched(repository, revision, PATTERNS, cached_only=cached_only)


def _fetched(repository: str, revision: str | None, patterns: tuple[str, ...], *, cached_only: bool) -> Path:
    switch_off()
    try:
        from huggingface_hub import errors, snapshot_download
    except ImportError:
        raise BackendError(
            f"there is no directory {repository!r}, and reading it from the Hub needs huggingface_hub: "
            "pip install 'edgevlm[hub]'."
        ) from None
    try:
        found = snapshot_download(
            repository, revision=revision, allow_patterns=list(patterns), local_files_only=cached_only
        )
    except errors.GatedRepoError:
        reason = "it is gated. Ask for access on its page, then log in: hf auth login."
    except errors.RepositoryNotFoundError:
        reason = "there is no such repository, or it is private. Check the name, or log in: hf auth login."
    except errors.RevisionNotFoundError:
        reason = f"it has no revision {revision!r}."
    except errors.EntryNotFoundError as error:
        if isinstance(error, errors.LocalEntryNotFoundError):
            cause = _first_line(error.__cause__ or error)
            reason = f"the Hub does not answer ({cause}), and the cache does not hold all of it. Check the network."
        else:
            reason = f"a file that it lists is not there ({_last_line(error)}). Try again, or give another revision."
    # Which errors of its HTTP library come through depends on the version of huggingface_hub.
    except Exception as error:  # noqa: BLE001
        reason = f"{_first_line(error)}. Try again: what has arrived is kept."
    else:
        return Path(found)
    raise PackageError(
        f"there is no directory {repository!r}, and it could not be fetched from the Hub: {reason} "
        "A snapshot that you download yourself can be given as a directory."
    )


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".")


def _last_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[-1].rstrip(".")

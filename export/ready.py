"""What an export needs besides weights, checked before any work is done: the tokenizer, the templates, transformers."""

from __future__ import annotations

from typing import Any

from edgevlm.errors import BackendError, PackageError
from export.archspec import ArchSpec
from export.checkpoint import Checkpoint
from export.checkpoints.paths import parse_object
from export.reference.installed import INSTALL_HINT, is_available

TEMPLATE_NAME = "chat_template.jinja"


def check_ready(checkpoint: Checkpoint, spec: ArchSpec, *, needs_reference: bool) -> None:
    """Raises what would else stop the export after its weights were built.

    PackageError for a tokenizer.json that is missing, damaged or of another model, or a chat template that is not text;
    BackendError when transformers is asked for and not installed.
    """
    if needs_reference and not is_available():
        raise BackendError(f"comparing with transformers needs torch and transformers: {INSTALL_HINT}.")
    tokenizer = _tokenizer(checkpoint)
    if spec.language is not None:
        _check_ids(checkpoint, tokenizer, spec.language.vocab)
    if spec.prompt is not None:
        _check_image_token(checkpoint, tokenizer, spec.prompt.image_token, spec.prompt.image_token_id)
    try:
        checkpoint.files.get(TEMPLATE_NAME, b"").decode("utf-8")
    except UnicodeDecodeError as error:
        raise PackageError(
            f"{checkpoint.name}: {TEMPLATE_NAME} is not UTF-8 text (byte {error.start}); download it again"
        ) from None


def _tokenizer(checkpoint: Checkpoint) -> Any:
    from tokenizers import Tokenizer

    if "tokenizer.json" not in checkpoint.files:
        raise PackageError(
            f"{checkpoint.name} has no tokenizer.json, which every package needs; {checkpoint.tokenizer_hint}"
        )
    content = checkpoint.files["tokenizer.json"]
    try:
        return Tokenizer.from_str(content.decode("utf-8"))
    except Exception as error:  # noqa: BLE001 - the tokenizers library raises bare Exception for all of its errors
        if "model" not in parse_object(content, f"{checkpoint.name}: tokenizer.json"):
            raise PackageError(
                f"{checkpoint.name}: tokenizer.json is JSON, but no tokenizer: it has no 'model'; download it again"
            ) from None
        raise PackageError(
            f"{checkpoint.name}: no tokenizer can be made of tokenizer.json ({error}); download it again, or save it "
            "anew with transformers (AutoTokenizer.from_pretrained, save_pretrained)"
        ) from None


def _check_ids(checkpoint: Checkpoint, tokenizer: Any, n_rows: int) -> None:
    """Added tokens may lie beyond the table (some models leave them unused), the vocabulary's own may not."""
    vocabulary: dict[str, int] = tokenizer.get_vocab(with_added_tokens=False)
    token, index = max(vocabulary.items(), key=lambda item: item[1], default=("", -1))
    if index >= n_rows:
        raise PackageError(
            f"{checkpoint.name}: tokenizer.json gives {token!r} the id {index:,}, but the model has {n_rows:,} tokens "
            "(vocab_size); one of the two files is from another checkpoint"
        )


def _check_image_token(checkpoint: Checkpoint, tokenizer: Any, token: str, expected: int) -> None:
    found = tokenizer.token_to_id(token)
    if found != expected:
        what = f"gives it the id {found}" if found is not None else "does not have it"
        raise PackageError(
            f"{checkpoint.name}: the image token {token!r} has the id {expected} in config.json, but tokenizer.json "
            f"{what}; one of the two files is from another checkpoint"
        )

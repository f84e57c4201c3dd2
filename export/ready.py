"""What an export needs, checked before any work is done: tensors by name and shape, tokenizer, template, transformers.

All of it would be found later, too, after minutes of building weights.
"""

from __future__ import annotations

import re
from typing import Any

from edgevlm.errors import BackendError, PackageError
from edgevlm.tokenizer import read_backend
from export.archspec import ArchSpec, LMSpec
from export.checkpoint import Checkpoint
from export.checkpoints.file_kinds import HEAD_BYTES, other_kind
from export.checkpoints.paths import parse_object
from export.graphs.tensors import Tensors
from export.quant.mix import linear_shapes
from export.reference.installed import INSTALL_HINT, is_available

TEMPLATE_NAME = "chat_template.jinja"


def check_ready(checkpoint: Checkpoint, spec: ArchSpec, *, needs_reference: bool) -> None:
    """Raises what would else stop the export after its weights were built.

    PackageError for a tokenizer.json that is missing, damaged or of another model, or a chat template that is not text;
    UnsupportedModelError for a tensor that is missing, of another shape, or of no known part; BackendError when
    transformers is asked for and not installed.
    """
    if needs_reference and not is_available():
        raise BackendError(f"comparing with transformers needs torch and transformers: {INSTALL_HINT}.")
    tokenizer = _tokenizer(checkpoint)
    if spec.language is not None:
        _check_ids(checkpoint, tokenizer, spec.language.vocab)
        _check_shapes(spec.language, Tensors(checkpoint, spec.names))
    _check_names(checkpoint, spec)
    if spec.prompt is not None:
        _check_image_token(checkpoint, tokenizer, spec.prompt.image_token, spec.prompt.image_token_id)
    _check_template(checkpoint)


def _check_template(checkpoint: Checkpoint) -> None:
    content = checkpoint.files.get(TEMPLATE_NAME, b"")
    if kind := other_kind(content[:HEAD_BYTES], is_text=True):
        raise PackageError(f"{checkpoint.name}: {TEMPLATE_NAME} is not a template, but {kind}")
    try:
        content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise PackageError(
            f"{checkpoint.name}: {TEMPLATE_NAME} is not UTF-8 text (byte {error.start}); download it again"
        ) from None


def _check_shapes(language: LMSpec, tensors: Tensors) -> None:
    """The language model's norms, linears and embedding; what is optional is left to the graphs."""
    names = tensors.names.language
    tensors.expect(f"{names['embed']}.weight", (language.vocab, language.hidden))
    tensors.expect(f"{names['final_norm']}.weight", (language.hidden,))
    for layer in range(len(language.layer_kinds)):
        shapes: dict[str, tuple[int, ...]] = dict.fromkeys(("input_norm", "post_norm"), (language.hidden,))
        for role, shape in {**shapes, **linear_shapes(language, layer)}.items():
            if role in names:
                tensors.expect(f"{names[role].format(i=layer)}.weight", shape)


def _check_names(checkpoint: Checkpoint, spec: ArchSpec) -> None:
    """Every tensor must have a name that some part of the model could have, or be left out on purpose."""
    stems = [*spec.names.vision.values(), *spec.names.connector.values(), *spec.names.language.values()]
    patterns = [re.compile(pattern) for pattern in (*map(_pattern, stems), *spec.names.ignore)]

    def is_known(name: str) -> bool:
        spellings = [here + name.removeprefix(there) for here, there in spec.names.roots if name.startswith(there)]
        return any(pattern.fullmatch(spelling) for spelling in (name, *spellings) for pattern in patterns)

    if not spec.names.transforms:
        checkpoint.refuse_unused({name for name in checkpoint.tensors() if not is_known(name)})


def _pattern(stem: str) -> str:
    layers = re.escape(stem.removeprefix("=")).replace(r"\{i\}", r"\d+")
    return layers if stem.startswith("=") else rf"{layers}\.(weight|bias)"


def _tokenizer(checkpoint: Checkpoint) -> Any:
    if "tokenizer.json" not in checkpoint.files:
        raise PackageError(
            f"{checkpoint.name} has no tokenizer.json, which every package needs; {checkpoint.tokenizer_hint}"
        )
    content = checkpoint.files["tokenizer.json"]
    if "model" not in parse_object(content, f"{checkpoint.name}: tokenizer.json"):
        raise PackageError(
            f"{checkpoint.name}: tokenizer.json is JSON, but no tokenizer: it has no 'model'; download it again"
        )
    hint = "; download it again, or save it anew with transformers (AutoTokenizer.from_pretrained, save_pretrained)"
    return read_backend(content.decode("utf-8"), f"{checkpoint.name}: tokenizer.json", hint)


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

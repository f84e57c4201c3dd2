"""Which chat template a checkpoint has, in the places and the order of transformers 5.24, and whether it works.

A processor (Idefics3 and SmolVLM have one) looks into processor_config.json, chat_template.json, chat_template.jinja; a
tokenizer into chat_template.jinja and tokenizer_config.json. A template under `additional_chat_templates/` or in a list
has a name; only 'default' is taken. Where these have none, the places of the other kind are looked at. A package
carries the one that was found as chat_template.jinja.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgevlm.chat_template import ChatTemplate, default_template, special_tokens
from edgevlm.errors import EdgeVLMError, PackageError, UsageError
from edgevlm.prompt import build_segments
from edgevlm.spec import PromptSpec
from edgevlm.tiling import TilePlan
from edgevlm.tokenizer import Tokenizer, read_backend
from export.checkpoints.paths import parse_object

if TYPE_CHECKING:
    from export.checkpoint import Checkpoint

JINJA, LEGACY, PROCESSOR, TOKENIZER = (
    "chat_template.jinja", "chat_template.json", "processor_config.json", "tokenizer_config.json",
)  # fmt: skip
NAMED = "additional_chat_templates"
PROCESSOR_TYPES = ("idefics3", "smolvlm")
HINT = "give another with --chat-template FILE, or leave it out with --no-chat-template"
_ONE_TILE = TilePlan("square", 28, 1, 1, ((28, 28),), (0, 0), False)


def named_templates(directory: Path) -> list[str]:
    """Returns the names of a snapshot's templates that have a file of their own."""
    return sorted(f"{NAMED}/{path.name}" for path in (directory / NAMED).glob("*.jinja"))


def has_processor(checkpoint: Checkpoint) -> bool:
    """Whether transformers reads this model's chat template with a processor."""
    return checkpoint.config.get("model_type") in PROCESSOR_TYPES


def own_template(files: Mapping[str, bytes], with_processor: bool) -> str | None:
    """Returns the chat template among the files of a checkpoint.

    Raises PackageError for an entry that is no template, or templates none of which is the default.
    """
    named = [name for name in files if name.startswith(f"{NAMED}/")]
    for name, found in _entries(files, with_processor):
        if found is None:
            continue
        source = default_template(found)
        if source is not None:
            return source
        if isinstance(found, str | list | dict) and found:
            raise PackageError(f"{name} has chat templates, but none is named 'default'; {HINT}")
        raise PackageError(f"{name} has {str(found)[:60]!r} as its chat template, expected a text; {HINT}")
    if named:
        raise PackageError(f"{named[0]} is a chat template, but none is named 'default'; {HINT}")
    return None


def _entries(files: Mapping[str, bytes], with_processor: bool) -> Iterator[tuple[str, Any]]:
    """Yields the places that may hold a template, the first first, with what stands there."""
    default = f"{NAMED}/default.jinja"
    processors = [(PROCESSOR, _entry(files, PROCESSOR)), (LEGACY, _entry(files, LEGACY))]
    tokenizers = [(TOKENIZER, _entry(files, TOKENIZER))]
    if with_processor:
        yield from [*processors, (JINJA, _text(files, JINJA)), (default, _text(files, default)), *tokenizers]
    else:
        yield from [(default, _text(files, default)), (JINJA, _text(files, JINJA)), *tokenizers, *processors[::-1]]


def _entry(files: Mapping[str, bytes], name: str) -> Any:
    return parse_object(files[name], name).get("chat_template") if name in files else None


def _text(files: Mapping[str, bytes], name: str) -> str | None:
    if name not in files:
        return None
    try:
        return files[name].decode("utf-8")
    except UnicodeDecodeError as error:
        raise PackageError(f"{name} is not UTF-8 text (byte {error.start}); {HINT}") from None


def carried(
    checkpoint: Checkpoint,
    prompt: PromptSpec | None,
    n_rows: int,
    *,
    template: str | None = None,
    without: bool = False,
) -> dict[str, bytes]:
    """Returns the files that a package carries, with the one chat template of the checkpoint, or `template`, or none.

    Raises PackageError when the template cannot render the simplest conversation, or gives ids that the embedding's
    `n_rows` rows do not have.
    """
    if template is not None and without:
        raise UsageError("a chat template is given, and none is asked for; choose one")
    files = {name: data for name, data in checkpoint.files.items() if not name.startswith(f"{NAMED}/")}
    tokenizer = None
    if "tokenizer.json" in files:
        tokenizer = Tokenizer(read_backend(files["tokenizer.json"].decode("utf-8"), "tokenizer.json"))
    if without:
        return _stripped(files)
    where = "the given chat template" if template is not None else f"the chat template of {checkpoint.name}"
    source = template if template is not None else own_template(checkpoint.files, has_processor(checkpoint))
    if source is None:
        return files
    try:
        _check_template(ChatTemplate(source, _special_tokens(files), where), tokenizer, prompt, n_rows)
    except EdgeVLMError as error:
        raise PackageError(f"{error}; {HINT}") from error
    return {**files, JINJA: source.encode("utf-8")}


def _stripped(files: Mapping[str, bytes]) -> dict[str, bytes]:
    kept = {name: data for name, data in files.items() if name not in (JINJA, LEGACY)}
    for name in (PROCESSOR, TOKENIZER):
        found = parse_object(kept[name], name) if name in kept else {}
        if found.pop("chat_template", None) is not None:
            kept[name] = json.dumps(found, indent=2, ensure_ascii=False).encode("utf-8")
    return kept


def _special_tokens(files: Mapping[str, bytes]) -> dict[str, str]:
    config, others = (
        parse_object(files[name], name) if name in files else {} for name in (TOKENIZER, "special_tokens_map.json")
    )
    return special_tokens(config, others)


def _check_template(chat: ChatTemplate, tokenizer: Tokenizer | None, prompt: PromptSpec | None, n_rows: int) -> None:
    """Raises what hinders a template from one question, and one with a picture where there are any."""
    chat.check_language()
    for n_pictures in (0, 1) if prompt is not None else (0,):
        question = {"type": "text", "text": "What is this?"}
        content: Any = [*[{"type": "image"}] * n_pictures, question] if prompt is not None else question["text"]
        messages = [{"role": "user", "content": content}]
        if tokenizer is None:
            chat.render(messages)
            continue
        pictures = [_ONE_TILE] * n_pictures
        try:
            segments = build_segments(messages, chat, tokenizer, prompt, pictures)
        except UsageError:
            # Some models cannot do without a system text.
            with_system = [{"role": "system", "content": "You help."}, *messages]
            segments = build_segments(with_system, chat, tokenizer, prompt, pictures)
        _check_rows([i for segment in segments if isinstance(segment, list) for i in segment], n_rows, prompt)


def _check_rows(ids: Sequence[int], n_rows: int, prompt: PromptSpec | None) -> None:
    """Raises PackageError for an id without a row in the embedding; the image token needs none."""
    beyond = [i for i in ids if i >= n_rows and (prompt is None or i != prompt.image_token_id)]
    if beyond:
        raise PackageError(
            f"tokenizer.json gives the id {max(beyond)}, the model's embedding has {n_rows} rows; one of the two is "
            "from another checkpoint"
        )

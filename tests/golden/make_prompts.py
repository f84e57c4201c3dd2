"""Remake prompts.json: `python -m tests.golden.make_prompts` (needs transformers).

Prompt ids of transformers' own Idefics3 processor and chat templates, on the tiny byte-level tokenizer of
tests/tiny.py with SmolVLM's added tokens. Ids are stored with runs of the image token counted: [id, count].
"""

from __future__ import annotations

import json
import tempfile
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from tests.tiny import text_files

HERE = Path(__file__).parent

ADDED = (
    "<global-img>",
    *(f"<row_{row}_col_{col}>" for row in range(1, 7) for col in range(1, 7)),
    "<fake_token_around_image>",
    "<image>",
    "<end_of_utterance>",
)

SMOLVLM_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{message['role'] | capitalize}}"
    "{% if message['content'][0]['type'] == 'image' %}{{':'}}{% else %}{{': '}}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{line['text']}}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
"""HuggingFaceTB/SmolVLM-256M-Instruct, chat_template.json."""

SMOLLM2_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}"
    "{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""HuggingFaceTB/SmolLM2-135M-Instruct, tokenizer_config.json."""

SIZES = ((400, 600), (512, 512), (60, 2000), (10, 10))


def image(count: int, text: str) -> list[dict[str, Any]]:
    """A user turn with `count` pictures before its text."""
    return [{"role": "user", "content": [*[{"type": "image"}] * count, {"type": "text", "text": text}]}]


# (name, messages, picture sizes as (height, width), tile, longest edge)
VISION_CASES: list[tuple[str, list[dict[str, Any]], list[tuple[int, int]], int, int]] = [
    ("no picture", image(0, "What is the time?"), [], 512, 2048),
    *((f"one picture {h}x{w}", image(1, "What is in\n\nthis?"), [(h, w)], 512, 2048) for h, w in SIZES),
    ("one tile", image(1, "Is it red?"), [(300, 300)], 512, 512),
    ("two pictures", image(2, "Compare them."), [(400, 600), (300, 300)], 512, 1024),
    ("idefics3 tiles", image(1, " and so on"), [(700, 500)], 364, 1456),
    (
        "two turns, picture behind the text",
        [
            {"role": "user", "content": [{"type": "text", "text": "Look: "}, {"type": "image"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "A red circle.\n"}]},
            *image(1, "And now, in the other one?"),
        ],
        [(30, 40), (800, 100)],
        512,
        1024,
    ),
]

TEXT_CASES: list[tuple[str, list[dict[str, Any]]]] = [
    ("question", [{"role": "user", "content": "What is the time in there?"}]),
    ("system", [{"role": "system", "content": "Be short."}, {"role": "user", "content": "\n\n  12 apples\t"}]),
    (
        "turns",
        [
            {"role": "user", "content": "Größe <b>x</b> 日本語 |x| a < b > c"},
            {"role": "assistant", "content": " The answer\n\n"},
            {"role": "user", "content": ""},
        ],
    ),
]


def tokenizer(template: str, folder: Path) -> Any:
    """transformers' tokenizer on the tiny files."""
    from transformers import PreTrainedTokenizerFast

    for name, content in text_files(template, ADDED, eos="<end_of_utterance>").items():
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return PreTrainedTokenizerFast.from_pretrained(folder)


def vision_ids(theirs: Any, messages: Any, sizes: list[tuple[int, int]], tile: int, edge: int, seq: int) -> list[int]:
    """Ids of transformers' Idefics3 processor."""
    from transformers import Idefics3Processor
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

    images = Idefics3ImageProcessorPil(size={"longest_edge": edge}, max_image_size={"longest_edge": tile})
    processor = Idefics3Processor(images, theirs, image_seq_len=seq, chat_template=theirs.chat_template)
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    pictures = [np.full((*size, 3), 99, np.uint8) for size in sizes]
    out = processor(text=text, images=pictures or None, add_special_tokens=False)
    ids = out["input_ids"]
    return [int(token) for token in (ids[0] if isinstance(ids[0], list) else ids)]


def text_ids(theirs: Any, messages: Any) -> list[int]:
    """Ids of transformers' apply_chat_template."""
    out = theirs.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False)
    return [int(token) for token in out]


def counted(ids: list[int]) -> list[int | list[int]]:
    """Runs of more than four as [id, count]."""
    packed: list[int | list[int]] = []
    for token, run in groupby(ids):
        count = len(list(run))
        packed += [[token, count]] if count > 4 else [token] * count
    return packed


def written_out(packed: list[int | list[int]]) -> list[int]:
    """The inverse of `counted`."""
    return [token for item in packed for token in ([item[0]] * item[1] if isinstance(item, list) else [item])]


def main() -> None:
    import tokenizers
    import transformers

    result: dict[str, Any] = {
        "versions": {"transformers": transformers.__version__, "tokenizers": tokenizers.__version__}
    }
    with tempfile.TemporaryDirectory() as folder:
        theirs = tokenizer(SMOLVLM_TEMPLATE, Path(folder))
        result["vision"] = {name: counted(vision_ids(theirs, *case, seq=64)) for name, *case in VISION_CASES}
        theirs = tokenizer(SMOLLM2_TEMPLATE, Path(folder))
        result["text"] = {name: text_ids(theirs, messages) for name, messages in TEXT_CASES}
    (HERE / "prompts.json").write_text(json.dumps(result, separators=(",", ":")) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

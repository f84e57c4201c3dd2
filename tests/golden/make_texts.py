"""Remake texts.json.gz: `python -m tests.golden.make_texts` (needs transformers).

Ids that transformers gives: of conversations in the templates of tests/chat_families.py, two for each, and of strings
in the checkpoints of tests/tokenizer_file_cases.py.
"""

from __future__ import annotations

import copy
import gzip
import json
import random
import tempfile
from pathlib import Path
from typing import Any

from tests.chat_families import LISTS, MARKUP, SPECIAL, STRINGS, conversation
from tests.tiny import text_files
from tests.tokenizer_file_cases import CASES, base, strings, written

PATH = Path(__file__).parent / "texts.json.gz"
N_CONVERSATIONS = 2
N_STRINGS = 6
SPECIAL_NAMES = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<|endoftext|>"}


def family_files() -> dict[str, Any]:
    """The tiny tokenizer with the families' tokens, those of MARKUP not special."""
    found = text_files("", (*SPECIAL, *MARKUP), bos="<s>", eos="</s>")
    for token in found["tokenizer.json"]["added_tokens"]:
        token["special"] = token["content"] not in MARKUP
    for token in found["tokenizer_config.json"]["added_tokens_decoder"].values():
        token["special"] = token["content"] not in MARKUP
    del found["tokenizer_config.json"]["additional_special_tokens"], found["chat_template.jinja"]
    return found


def family_conversations(name: str, as_list: bool) -> list[Any]:
    """The stored conversations of a family."""
    rng = random.Random(f"{name} golden")
    return [conversation(rng, as_list) for _ in range(N_CONVERSATIONS)]


def case_files(name: str, kind: str, change: Any) -> dict[str, Any]:
    """The files of a case of tests/tokenizer_file_cases.py."""
    files = copy.deepcopy(base(kind))
    if name == "qwen2's class":
        files["config.json"]["model_type"] = "qwen2"
    change(files)
    return files


def template_ids(theirs: Any, messages: Any, source: str) -> list[int] | None:
    """transformers' ids; None where the template refuses."""
    from jinja2.exceptions import TemplateError

    options = {"chat_template": source, "add_generation_prompt": True, "tokenize": True, "return_dict": False}
    try:
        return list(theirs.apply_chat_template(messages, **options))
    except TemplateError:
        return None


def main() -> None:
    import transformers

    from export.reference.language import load_tokenizer

    result: dict[str, Any] = {"transformers": transformers.__version__, "chats": {}, "files": {}}
    with tempfile.TemporaryDirectory() as scratch:
        written(family_files(), Path(scratch) / "family")
        theirs = transformers.PreTrainedTokenizerFast.from_pretrained(Path(scratch) / "family")
        for families, as_list in ((STRINGS, False), (LISTS, True)):
            for name, source in families.items():
                found = [template_ids(theirs, m, source) for m in family_conversations(name, as_list)]
                result["chats"][f"{name} {as_list}"] = found
        for number, (name, kind, change) in enumerate(CASES):
            folder = Path(scratch) / str(number)
            written(case_files(name, kind, change), folder)
            theirs = load_tokenizer(folder)
            ids = [list(theirs(text, add_special_tokens=False).input_ids) for text in strings(3, N_STRINGS)]
            result["files"][name] = ids
    data = json.dumps(result, separators=(",", ":")).encode()
    PATH.write_bytes(gzip.compress(data, mtime=0))


if __name__ == "__main__":
    main()

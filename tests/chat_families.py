# ruff: noqa: E501, RUF001 - templates are read in the lines that their authors write
"""Chat templates of known families, written from what their prompts look like, and conversations to run them on.

`STRINGS` take message['content'] as a text, `LISTS` as typed parts. The families of
tests/android_demo/chat_templates.py belong to the first.
"""

from __future__ import annotations

import random
from typing import Any

from tests.android_demo.chat_templates import TEMPLATES
from tests.tokenizer_strings import PIECES, WORDS

SPECIAL = (
    "<s>", "</s>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>", "<start_of_turn>", "<end_of_turn>",
    "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "[INST]", "[/INST]", "<image>", "<end_of_utterance>",
    "<|vision_start|>", "<|image_pad|>", "<|vision_end|>", "[gMASK]", "<sop>", "<|start_of_role|>", "<|end_of_role|>",
    "<｜User｜>", "<｜Assistant｜>", "<bos>", "<fake_token_around_image>", "<|START_OF_TURN_TOKEN|>", "<|USER_TOKEN|>",
)  # fmt: skip
"""Special tokens: decoding leaves them away."""
MARKUP = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<<SYS>>")
"""Added tokens that are not special."""

STRINGS: dict[str, str] = {
    **TEMPLATES,
    "vicuna": (
        "{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] + ' ' }}{% set rest = messages[1:] %}"
        "{% else %}{{ 'A chat between a curious user and an assistant. ' }}{% set rest = messages %}{% endif %}"
        "{% for m in rest %}{% if m['role'] == 'user' %}{{ 'USER: ' + m['content'] | trim + ' ' }}"
        "{% else %}{{ 'ASSISTANT: ' + m['content'] | trim + eos_token }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
    ),
    "mistral": (
        "{{ bos_token }}{% set ns = namespace(sys='') %}{% for m in messages %}{% if m.role == 'system' %}"
        "{% set ns.sys = m.content ~ '\n\n' %}{% elif m.role == 'user' %}"
        "[INST] {{ (ns.sys if loop.last else '') ~ m.content }} [/INST]"
        "{% elif m.role == 'assistant' %} {{ m.content | trim }}{{ eos_token }}"
        "{% else %}{{ raise_exception('only user and assistant') }}{% endif %}{% endfor %}"
    ),
    "mistral, alternating": (
        "{%- for m in messages | rejectattr('role', 'equalto', 'system') %}"
        "{%- if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{%- endif %}"
        "{%- endfor %}{{ bos_token }}{%- for m in messages %}{%- if m.role == 'user' %}[INST]{{ m.content }}[/INST]"
        "{%- elif m.role == 'assistant' %}{{ m.content + eos_token }}{%- endif %}{%- endfor %}"
    ),
    "phi3": (
        "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
    ),
    "phi4": (
        "{% for m in messages %}<|im_start|>{{ m.role }}<|system|>{% if m.role == 'assistant' and '</think>' in m.content %}"
        "{{ m.content.split('</think>', 1)[1] }}{% else %}{{ m.content }}{% endif %}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant<|system|>{% endif %}"
    ),
    "deepseek": (
        "{% set ns = namespace(first=true, sys='') %}{% for m in messages if m.role == 'system' %}"
        "{% set ns.sys = ns.sys + ('' if ns.first else '\n\n') + m.content %}{% set ns.first = false %}{% endfor %}"
        "{{ bos_token }}{{ ns.sys }}{% for m in messages %}{% if m.role == 'user' %}{{ '<｜User｜>' + m.content }}"
        "{% elif m.role == 'assistant' %}{% set c = m.content %}{% if '</think>' in c %}"
        "{% set c = c.split('</think>')[-1] %}{% endif %}{{ '<｜Assistant｜>' + c + '</s>' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<｜Assistant｜><think>\n' }}{% endif %}"
    ),
    "glm": (
        "[gMASK]<sop>{% for m in messages %}<|{{ m.role }}|>\n{% if m.role == 'assistant' %}"
        "{% set parts = m.content.partition('</think>') %}{% if parts[1] %}<think></think>\n{{ parts[2].strip() }}"
        "{% else %}{{ m.content.strip() }}{% endif %}{% elif m.role == 'user' %}{{ m.content }}"
        "{{ '/nothink' if not enable_thinking | default(true) and not m.content.endswith('/nothink') else '' }}"
        "{% else %}{{ m.content }}{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    ),
    "granite": (
        "{%- if messages[0]['role'] == 'system' %}{%- set system = messages[0]['content'] %}{%- set rest = messages[1:] %}"
        "{%- else %}{%- set system = 'Today\\'s Date: ' ~ (strftime_now('%Y') | length) %}{%- set rest = messages %}"
        "{%- endif %}{{- '<|start_of_role|>system<|end_of_role|>' + system + '</s>\n' }}{%- for m in rest %}"
        "{{- '<|start_of_role|>' + m['role'] + '<|end_of_role|>' + m['content'] + '</s>\n' }}"
        "{%- if loop.last and add_generation_prompt %}{{- '<|start_of_role|>assistant<|end_of_role|>' }}{%- endif %}"
        "{%- endfor %}"
    ),
    "smollm3": (
        "{%- set reasoning = namespace(mode='/think') %}{%- if messages[0].role == 'system' %}"
        "{%- set system = messages[0].content %}{%- if '/no_think' in system %}{%- set reasoning.mode = '/no_think' %}"
        "{%- set system = system.replace('/no_think', '').rstrip() %}{%- elif '/think' in system %}"
        "{%- set system = system.replace('/think', '').rstrip() %}{%- endif %}{%- else %}{%- set system = '' %}{%- endif %}"
        "<|im_start|>system\n{{ reasoning.mode }}\n{{ system }}<|im_end|>\n{%- for m in messages %}"
        "{%- if m.role == 'user' %}{{ '<|im_start|>user\n' + m.content + '<|im_end|>\n' }}"
        "{%- elif m.role == 'assistant' %}{% generation %}{%- if reasoning.mode == '/think' %}"
        "{{ '<|im_start|>assistant\n' + m.content.lstrip('\n') + '<|im_end|>\n' }}{%- else %}"
        "{{ '<|im_start|>assistant\n<think>\n\n</think>\n' + m.content.lstrip('\n') + '<|im_end|>\n' }}{%- endif %}"
        "{% endgeneration %}{%- endif %}{%- endfor %}{%- if add_generation_prompt %}"
        "{{ '<|im_start|>assistant\n' if reasoning.mode == '/think' else '<|im_start|>assistant\n<think>\n\n</think>\n' }}"
        "{%- endif %}"
    ),
    "command": (
        "{{ bos_token }}{% for m in messages %}<|START_OF_TURN_TOKEN|><|USER_TOKEN|>"
        "{{ m.content | trim if m.role != 'system' else m.content.strip() ~ '!' }}{{ '</s>' }}{% endfor %}"
    ),
    "alpaca": (
        "{% for m in messages %}{% if m.role == 'user' %}### Instruction:\n{{ m.content.strip() }}\n\n"
        "{% elif m.role == 'assistant' %}### Response:\n{{ m.content.strip() }}\n\n{% else %}{{ m.content.strip() }}\n\n"
        "{% endif %}{% endfor %}{% if add_generation_prompt %}### Response:\n{% endif %}"
    ),
    "falcon": (
        "{% for m in messages %}{% if not loop.first %}{{ '\n' }}{% endif %}"
        "{{ {'user': 'User', 'assistant': 'Falcon'}.get(m.role, 'System') + ': ' + m.content.strip().replace('\r\n', '\n')"
        ".replace('\n\n', '\n') }}{% endfor %}{% if add_generation_prompt %}{{ '\nFalcon:' }}{% endif %}"
    ),
    "solar": (
        "{% for m in messages %}{{ '### ' ~ m.role | title ~ ':\n' ~ m.content ~ '\n\n' }}{% endfor %}"
        "{{ '### Assistant:\n' if add_generation_prompt }}"
    ),
    "user text looked into": (
        "{% for m in messages %}<|im_start|>{{ m.role }}{% if '/no_think' in m.content %} quiet{% endif %}"
        "{% if m.content[:1] == ' ' %} indented{% endif %}{% if m.content.count('e') > 2 %} e{% endif %}"
        "{% if m.content is lower %} lower{% endif %}\n{{ m.content[:200] }}<|im_end|>\n{% endfor %}"
    ),
    "all upper": "{% for m in messages %}<|im_start|>{{ m.content | upper }}<|im_end|>{{ m.content.title() }}{% endfor %}",
    "as json": "{% for m in messages %}<|im_start|>{{ m | tojson }}{{ m.content | tojson(ensure_ascii=true) }}{% endfor %}",
    "json, indented": (
        "<|im_start|>{{ messages | tojson(indent=2) }}<|im_end|>{{ messages[0] | tojson(separators=(',', ':'), sort_keys=true) }}"
    ),
    "words": (
        "{% for m in messages %}<|im_start|>{% for word in m.content.split() %}{{ word }}{{ ' ' if not loop.last }}"
        "{% endfor %}<|im_end|>{{ m.content | wordcount }}{% endfor %}"
    ),
    "lines": (
        "{% for m in messages %}{% for line in m.content.splitlines() %}> {{ line.rstrip() }}\n{% endfor %}"
        "<|im_end|>{% endfor %}"
    ),
    "filters": (
        "{% for m in messages %}<|im_start|>{{ m.content | indent(2) | center(20) }}{{ '%s: %s' | format(m.role, m.content) }}"
        "{{ m.content | truncate(12) }}{{ m.content | wordwrap(10) }}{{ m.content | escape }}{{ m.content | urlencode }}"
        "{{ m.content | replace('e', '<|im_end|>') }}{{ m.content | capitalize }}{{ m.content | int }}"
        "{{ m.content | first }}{{ m.content | last }}{{ m.content | length }}<|im_end|>{% endfor %}"
    ),
    "structures": (
        "{% for role, group in messages | groupby('role') %}{{ role }}:{{ group | map(attribute='content') | join('<|im_end|>') }}"
        "{% endfor %}{{ messages | selectattr('role', 'equalto', 'user') | list | length }}"
        "{{ messages | map(attribute='content') | map('trim') | select | first | default('none', true) }}"
        "{{ messages[-1].content[-3:] }}{% for k, v in messages[0] | dictsort %}{{ k }}={{ v }};{% endfor %}"
    ),
    "macros": (
        "{% macro turn(m, end='<|im_end|>') %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}{{ caller() if caller else '' }}"
        "{{ end }}{% endmacro %}{% set c = cycler('a', 'b') %}{% set j = joiner('|') %}{% for m in messages %}{{ j() }}"
        "{{ turn(m) }}{{ c.next() }}{% if loop.previtem is defined and loop.previtem.role == m.role %}same{% endif %}"
        "{% call turn(m, end='') %}{{ m.content | length }}{% endcall %}{% endfor %}"
    ),
    "blocks": (
        "{% for m in messages %}{% set text %}{{ m.role }}: {{ m.content }}{% endset %}{% filter trim %} {{ text }} {% endfilter %}"
        "{% if loop.index > 3 %}{% break %}{% endif %}{% if not m.content %}{% continue %}{% endif %}<|im_end|>{% endfor %}"
    ),
    "prefixes": (
        "{% for m in messages %}{{ m.content.removeprefix('the').removesuffix('.').rsplit(' ', 1) | join('<|im_end|>') }}"
        "{{ m.content.replace(' ', '<|im_start|>', 1) }}{{ m.content.rpartition('\n')[2] }}{{ m.content.swapcase() }}"
        "{{ m.content == messages[0].content }}{{ m.content.find('a') }}{{ m.content.lstrip('<the ') }}{% endfor %}"
    ),
}  # fmt: skip

_TURN = "{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}"
LISTS: dict[str, str] = {
    "smolvlm": (
        "<|im_start|>{% for m in messages %}{{ m['role'] | capitalize }}"
        "{% if m['content'][0]['type'] == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}"
        "{% for line in m['content'] %}{% if line['type'] == 'text' %}{{ line['text'] }}"
        "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
        "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
    ),
    "qwen-vl": (
        "{% for m in messages %}{% if loop.first and m.role != 'system' %}<|im_start|>system\nYou help.<|im_end|>\n{% endif %}"
        f"<|im_start|>{{{{ m.role }}}}\n{_TURN}"
        "{% if p.type == 'image' or 'image' in p %}<|vision_start|><image><|vision_end|>{% elif 'text' in p %}{{ p.text }}"
        "{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
    "gemma": (
        "{{ bos_token }}{%- if messages[0]['role'] == 'system' -%}{%- set first = messages[0]['content'][0]['text'] + '\n\n' -%}"
        "{%- set rest = messages[1:] -%}{%- else -%}{%- set first = '' -%}{%- set rest = messages -%}{%- endif -%}"
        "{%- for m in rest -%}{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' "
        "+ (first if loop.first else '') }}{%- for p in m['content'] -%}{%- if p['type'] == 'image' -%}{{ '<image>' }}"
        "{%- elif p['type'] == 'text' -%}{{ p['text'] | trim }}{%- endif -%}{%- endfor -%}{{ '<end_of_turn>\n' }}"
        "{%- endfor -%}{%- if add_generation_prompt -%}{{ '<start_of_turn>model\n' }}{%- endif -%}"
    ),
    "llava": (
        "{% for m in messages %}{{ m.role.upper() + ': ' }}{% for p in m.content | selectattr('type', 'equalto', 'image') %}"
        "{{ '<image>\n' }}{% endfor %}{% for p in m.content | selectattr('type', 'equalto', 'text') %}{{ p.text + ' ' }}"
        "{% endfor %}{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
    ),
    "thinking, in parts": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for p in m.content %}{% if p.type == 'image' %}<image>"
        "{% elif m.role == 'assistant' and '</think>' in p.text %}{{ p.text.split('</think>')[-1].lstrip('\n') }}"
        "{% else %}{{ p.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
    ),
}  # fmt: skip

_ODD = (
    "", " ", "\n", "  two spaces ahead and behind  ", "trailing \n\n", "{{ messages }} {% raw %}", "{# no comment #}",
    "ß ẞ ŉ İ Σίσυφος ﬁ", "\U000f0000\U0010fffd private", "a\u200db\ufeff", "/no_think please", "be brief /think", "42", "-7.5",
    "it's \"quoted\" & <b>bold</b> \\n", "a<b and c>d |x|", "USER: no\nASSISTANT: yes", "### Response:", "[not a token]",
)  # fmt: skip


def random_text(rng: random.Random) -> str:
    """Returns ordinary text: words, scripts, code, odd white space; no token's text."""
    if rng.random() < 0.3:
        return rng.choice(_ODD)
    kinds = [WORDS, *PIECES.values()]
    return "".join(rng.choice(rng.choice(kinds)) + rng.choice((" ", " ", "", "\n")) for _ in range(rng.randint(1, 8)))


def hostile_text(rng: random.Random) -> str:
    """Returns text full of tokens, whole, in pieces and side by side."""
    pieces = []
    for _ in range(rng.randint(1, 5)):
        token = rng.choice(SPECIAL + MARKUP + ("<|im_start|>", "<|im_end|>"))
        cut = rng.randint(1, len(token) - 1)
        pieces.append(
            rng.choice((token, token, token + token, token[:cut], token[cut:], f" {token}\n", random_text(rng)))
        )
    return "".join(pieces)


def answer_text(rng: random.Random) -> str:
    """Returns what an assistant says, often after thinking."""
    thought = rng.choice((
        "", "", "<think>\nLet me see. {}\n</think>\n\n", "<think></think>", "</think>", "<think>\n\n</think>\n",
        "a <think> that stays open ", "<tool_call>\n{{}}\n</tool_call>",
    ))  # fmt: skip
    return thought.format(random_text(rng)) + random_text(rng)


def conversation(rng: random.Random, as_list: bool, hostile: bool = False) -> list[dict[str, Any]]:
    """Returns one to three turns, perhaps with a system text and, in parts, with pictures."""
    typed = hostile_text if hostile else random_text
    messages = [_message("system", typed(rng), as_list, 0)] if rng.random() < 0.4 else []
    n_turns = rng.randint(1, 3)
    for turn in range(n_turns):
        messages.append(_message("user", typed(rng), as_list, rng.randint(0, 2) if as_list else 0))
        if turn + 1 < n_turns:
            messages.append(_message("assistant", answer_text(rng), as_list, 0))
    return messages


def _message(role: str, text: str, as_list: bool, n_images: int) -> dict[str, Any]:
    if not as_list:
        return {"role": role, "content": text}
    return {"role": role, "content": [*[{"type": "image"}] * n_images, {"type": "text", "text": text}]}

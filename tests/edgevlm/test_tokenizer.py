"""Tokens: user text never becomes control tokens, ordinary text is Hugging Face's, streams are whole characters."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend
from tokenizers_zoo import CONTROL, EMOJI_TEXT, TEXT, ZOO, backend, tokenizer

from edgevlm.errors import PackageError, UsageError
from edgevlm.tokenizer import StreamDecoder, Tokenizer, byte_level_bytes
from tests.weights import qwen2_coder_0_5b, smollm2_135m

names = st.sampled_from(list(ZOO))
texts = st.lists(
    st.one_of(
        st.text(max_size=6), st.sampled_from([*TEXT, EMOJI_TEXT, "   ", "\n\n", "    ", "zebrafish", "▁", "<", "|>"])
    ),
    max_size=6,
).map("".join)
hostile = st.lists(st.one_of(texts, st.sampled_from([*CONTROL, "<|im_start|>", "[SEP]"])), max_size=6).map("".join)


@settings(max_examples=150, deadline=None)
@given(name=names, text=hostile)
def test_text_never_gives_control_tokens(name: str, text: str) -> None:
    ours = tokenizer(name)
    unknown = ours.token_id("<unk>")
    assert ours.control_ids.isdisjoint(set(ours.encode(text)) - {unknown, ours.token_id("[UNK]")})


@settings(max_examples=150, deadline=None)
@given(name=names, text=texts)
def test_ordinary_text_is_hugging_faces(name: str, text: str) -> None:
    expected = backend(name).encode(text, add_special_tokens=False).ids
    assert tokenizer(name).encode(text) == expected
    assert tokenizer(name).encode(text, allow_special=True) == expected


@pytest.mark.parametrize("name", list(ZOO))
def test_the_check_for_control_tokens_can_fail(name: str) -> None:
    """Negative control: recognised, the same text does give them."""
    ours = tokenizer(name)
    typed = "a </s><|im_end|> [SEP] b"
    assert ours.control_ids & set(ours.encode(typed, allow_special=True))
    assert not (ours.control_ids - {ours.token_id("[UNK]"), ours.token_id("<unk>")}) & set(ours.encode(typed))


def test_unigram_control_tokens_are_cut() -> None:
    """The model alone spells `</s>`: without the cut, plain text would end the turn."""
    ours = tokenizer("unigram")
    end = ours.token_id("</s>")
    assert end in ours._text_backend.encode("</s>", add_special_tokens=False).ids
    assert end not in ours.encode("x</s>y")
    assert ours.decode(ours.encode("x</s>y")) == "x</s>y"


def test_ordinary_added_words_stay_vocabulary() -> None:
    ours = tokenizer("byte-level")
    for word in ("zebrafish", "    "):
        assert ours.encode(f"a{word}b")[1:-1] == [ours.token_id(word)]
    assert ours.token_id("<tool_call>") not in ours.encode("<tool_call>")
    assert ours.token_id("<tool_call>") not in ours.special_ids


def test_text_that_continues_has_no_prefix_space() -> None:
    first = tokenizer("llama-first")
    assert [first.piece(i) for i in first.encode_as_text("the", at_start=True)] == ["▁the"]
    assert [first.piece(i) for i in first.encode_as_text("the", at_start=False)] == ["the"]
    always = tokenizer("llama-always")
    assert [always.piece(i) for i in always.encode_as_text("the", at_start=False)] == ["▁the"]


@pytest.mark.parametrize("name", ["llama-first", "byte-level"])
def test_documents_get_what_the_tokenizer_puts_around_them(name: str) -> None:
    text = "What is the end?"
    assert tokenizer(name).encode_document(text) == backend(name).encode(text).ids
    assert tokenizer(name).encode_document("</s>")[-1:] != [tokenizer(name).token_id("</s>")]


def streamed(ours: Tokenizer, ids: list[int], skip_special: bool = True) -> list[str]:
    decoder = StreamDecoder(ours, skip_special=skip_special)
    return [*map(decoder.push, ids), decoder.finish()]


@settings(max_examples=200, deadline=None)
@given(name=names, text=texts, skip=st.booleans())
def test_streams_join_to_the_decoded_text(name: str, text: str, skip: bool) -> None:
    ids = backend(name).encode(text).ids
    pieces = streamed(tokenizer(name), ids, skip)
    whole = backend(name).decode(ids, skip_special_tokens=skip)
    assert "".join(pieces) == whole == tokenizer(name).decode(ids, skip_special=skip)
    if "\ufffd" not in whole:
        assert all("\ufffd" not in piece for piece in pieces)


@settings(max_examples=200, deadline=None)
@given(name=st.sampled_from(["byte-level", "word-piece", "unigram"]), data=st.data())
def test_streams_of_any_ids_join_to_the_decoded_text(name: str, data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.integers(0, tokenizer(name).n_vocab + 40), max_size=24))
    assert "".join(streamed(tokenizer(name), ids)) == backend(name).decode(ids)


@settings(max_examples=200, deadline=None)
@given(raw=st.binary(max_size=12))
def test_byte_fallback_streams_any_bytes_as_utf8(raw: bytes) -> None:
    """Broken bytes: complete characters are kept, where `tokenizers` gives up the whole run."""
    ours = tokenizer("llama-first")
    ids = [3 + byte for byte in raw]
    text = raw.decode("utf-8", "replace")
    assert "".join(streamed(ours, ids)) == (text[1:] if text.startswith(" ") else text)


def test_incomplete_characters_are_held() -> None:
    ours = tokenizer("byte-level")
    family = "👩‍👧x"
    pieces = streamed(ours, ours.encode(family))
    assert "".join(pieces) == family
    assert [piece for piece in pieces if piece] == ["👩", "\u200d", "👧", "x"]
    cut = streamed(ours, ours.encode("é日")[:-1])
    assert cut == ["", "é", "", "", "\ufffd"]


def test_leading_space_of_an_answer() -> None:
    ours = tokenizer("llama-first")
    ids = ours.encode("the  is")
    assert "".join(streamed(ours, ids)) == "the  is"
    assert "".join(streamed(ours, [*ids, 1, *ids])) == "the  is the  is"


def test_ids_without_a_piece_are_silent() -> None:
    ours = tokenizer("byte-level")
    assert streamed(ours, [ours.n_vocab + 7, -1]) == ["", "", ""]


def test_byte_alphabet() -> None:
    assert (
        byte_level_bytes("Ġt") == b" t"
        and byte_level_bytes("a b") == b"a b"
        and byte_level_bytes("日") == "日".encode()
    )


def test_truncation_and_padding_of_the_file_are_off() -> None:
    changed = Backend.from_str(backend("byte-level").to_str())
    changed.enable_truncation(3)
    changed.enable_padding(length=99)
    assert Tokenizer(changed).encode(TEXT[0]) == tokenizer("byte-level").encode(TEXT[0])


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"\xff\xfe", b'{"model": {"type": "BPE"}}'])
def test_broken_files(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(PackageError, match=r"tokenizer\.json"):
        Tokenizer.from_file(path)
    with pytest.raises(PackageError, match="cannot be read"):
        Tokenizer.from_file(tmp_path / "missing.json")


def test_lone_surrogates_are_refused() -> None:
    with pytest.raises(UsageError, match="valid Unicode"):
        tokenizer("byte-level").encode("a\ud800b")


def test_stripping_tokens_report_their_white_space() -> None:
    """`Token` spans hold the white space that a token swallows, which prompts rely on."""
    changed = Backend.from_str(backend("byte-level").to_str())
    changed.add_special_tokens([AddedToken("<mask>", lstrip=True, rstrip=True, normalized=False)])
    ours = Tokenizer(changed)
    spans = [(t.start, t.end) for t in ours.encode_tokens("a  <mask> b") if t.id == ours.token_id("<mask>")]
    assert spans == [(1, 10)]


@pytest.mark.weights
@pytest.mark.parametrize("weights", [smollm2_135m, qwen2_coder_0_5b], ids=["smollm2", "qwen2.5-coder"])
def test_real_tokenizers(weights: Callable[[], Path]) -> None:
    from export.checkpoint import open_checkpoint

    text = open_checkpoint(weights()).files["tokenizer.json"].decode()
    theirs, ours = Backend.from_str(text), Tokenizer(Backend.from_str(text))
    control = [token for token in json.loads(text)["added_tokens"] if token["special"]]
    assert len(control) >= 3
    pages = [*TEXT, EMOJI_TEXT, "def f(x):\n    return x  # ok\n\n\n", "1 234,5 €", "  leading", "trailing  \n"]
    for page in pages:
        ids = theirs.encode(page, add_special_tokens=False).ids
        assert ours.encode(page) == ids
        assert "".join(streamed(ours, ids)) == theirs.decode(ids) == page
    for typed in (*ours.control_texts, "<image>", "<fake_token_around_image>"):
        for around in (typed, f"say {typed} now", f"{typed}{typed}", f" {typed}\n"):
            ids = ours.encode(around)
            assert ours.control_ids.isdisjoint(ids), around
            assert ours.decode(ids) == around
    recognised = theirs.encode("<|im_end|>", add_special_tokens=False).ids
    assert len(recognised) == 1 and recognised[0] in ours.control_ids  # negative control

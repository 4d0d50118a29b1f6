"""Text comes in whole characters, and never with a part of a stop word."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from varifocal.serving.answer_state import StopWords, TextStream


@pytest.mark.parametrize("text", ["a", "ä", "Grüße 漢字 🧲🧭!", "  two  blanks", "e\u0301"])
def test_characters_are_never_split(tokenizer, text: str) -> None:
    stream = TextStream(tokenizer)
    pieces = [stream.push(token) for token in tokenizer(text).input_ids]
    assert [piece for piece in pieces if piece] == list(text)
    assert stream.flush() == ""


@settings(deadline=None)
@given(st.binary(max_size=30))
def test_any_bytes_give_what_decoding_them_at_once_gives(tokenizer, data: bytes) -> None:
    stream = TextStream(tokenizer)
    text = "".join(stream.push(byte) for byte in data) + stream.flush()
    assert text == data.decode("utf-8", errors="replace") == tokenizer.decode(list(data))


def test_a_long_answer_is_not_decoded_anew_for_every_token(tokenizer, monkeypatch) -> None:
    longest = []
    decode = tokenizer.decode
    monkeypatch.setattr(
        tokenizer, "decode", lambda ids, **rest: (longest.append(len(ids)), decode(ids, **rest))[1]
    )
    stream = TextStream(tokenizer)
    assert "".join(stream.push(ord("a")) for _ in range(50)) == "a" * 50
    assert max(longest) <= 2


def test_half_a_character_at_the_end_is_not_lost(tokenizer) -> None:
    stream = TextStream(tokenizer)
    assert [stream.push(byte) for byte in "ab🧲".encode()[:4]] == ["a", "b", "", ""]
    assert stream.flush() == "\N{REPLACEMENT CHARACTER}"


def cut(text: str, words: list[str]) -> str:
    """The text before the stop word that is complete first."""
    for end in range(len(text) + 1):
        lengths = [len(word) for word in words if text[:end].endswith(word)]
        if lengths:
            return text[: end - max(lengths)]
    return text


@given(
    st.lists(st.text("ab", max_size=4), max_size=12),
    st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
)
def test_no_part_of_a_stop_word_comes_out_however_it_is_cut_in_pieces(pieces, words) -> None:
    stop = StopWords(words)
    wanted = cut("".join(pieces), words)
    let = ""
    for piece in pieces:
        let += stop.push(piece)
        assert wanted.startswith(let)
    let += stop.flush()
    assert let == wanted
    assert stop.passed == len(let)
    assert stop.found == any(word in "".join(pieces) for word in words)


@pytest.mark.parametrize("pieces", [["abab"], ["ab", "ab"], ["a", "b", "a", "b"]])
def test_the_word_that_is_complete_first_ends_an_answer(pieces) -> None:
    stop = StopWords(["abab", "b"])
    assert "".join(map(stop.push, pieces)) + stop.flush() == "a"


def test_no_more_is_held_back_than_may_be_a_stop_word() -> None:
    stop = StopWords(["</end>", "user:"])
    assert [stop.push(piece) for piece in ("a <", "/b", "> us", "es </en", "d> c")] == [
        "a ", "</b", "> ", "uses ", "",
    ]  # fmt: skip
    assert stop.found

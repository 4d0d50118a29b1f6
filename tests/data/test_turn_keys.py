"""Keys of a turn besides its speaker and its words: obeyed, refused by name, or told."""

import json

import pytest

from varifocal.data.encoding.encoder import Encoder
from varifocal.data.encoding.samples import Samples
from varifocal.data.mixture import Part, draw_epoch
from varifocal.data.rows.lazy import streamed_passes
from varifocal.data.source import open_source
from varifocal.errors import DataError
from varifocal.recipe import DataSection, FileSection


def opened(tmp_path, *answers, user=()):
    """Open a file of one conversation an item; each item is the keys of its first answer."""
    rows = [
        {
            "messages": [
                {"role": "user", "content": "Name a colour.", **dict(user)},
                {"role": "assistant", "content": "bad", **keys},
                {"role": "user", "content": "Again."},
                {"role": "assistant", "content": "good"},
            ]
        }
        for keys in answers
    ]
    path = tmp_path / "turns.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return open_source(FileSection(path=str(path)))


@pytest.mark.parametrize(
    ("keys", "trained"),
    [
        ({"weight": 0}, "good"),
        ({"weight": 0.0}, "good"),
        ({"train": False}, "good"),
        ({"loss": False}, "good"),
        ({"loss_mask": 0}, "good"),
        ({"weight": 0, "train": False}, "good"),
        ({"weight": 1}, "bad good"),
        ({"train": True}, "bad good"),
        ({"loss": 1}, "bad good"),
        ({"weight": None, "train": None, "tool_calls": None}, "bad good"),
    ],
)
def test_marks_are_obeyed(tmp_path, tokenizers, keys, trained):
    encoder = Encoder(tokenizers["smollm2"])
    encoded = encoder.encode(opened(tmp_path, keys).example(0))
    ends = "<|im_end|>"
    written = encoder.tokenizer.decode(encoded.trained_ids)
    assert written == "".join(word + ends for word in trained.split())


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"weight": 0.5}, "'weight' is 0.5; an answer is trained (1, true) or not (0, false)"),
        ({"weight": "0"}, "'weight' is '0'; an answer is trained"),
        ({"loss_mask": [0, 1]}, "'loss_mask' is [0, 1]; an answer is trained"),
        ({"weight": 1, "train": False}, "weight, train contradict each other"),
        ({"train_detail": [{"begin_offset": 0}]}, "has 'train_detail'; an answer is trained as a"),
        ({"mask": 1}, "has 'mask'; an answer is trained as a whole or not at all"),
        ({"tool_calls": [{"name": "f"}]}, "has 'tool_calls'; turns that call tools cannot be"),
        ({"function_call": {"name": "f"}}, "has 'function_call'; turns that call tools"),
        ({"images": ["a.png"]}, "has 'images'; images stand next to the turns"),
        ({"thinking": 3}, "'thinking' must be a text, not 3"),
        ({"thinking": "a", "reasoning": "b"}, "are different thoughts of one turn"),
        ({"value": "worse"}, "has both 'value' and 'content', and they differ"),
    ],
)
def test_what_cannot_be_followed_is_refused_by_name(tmp_path, keys, text):
    with pytest.raises(DataError) as caught:
        opened(tmp_path, {}, keys).example(1)
    assert "turns.jsonl: line 2: turn 2" in str(caught.value)
    assert text in str(caught.value)


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"train": True}, "'train' is True in a turn of the user; only the assistant's answers"),
        ({"reasoning_content": "hm"}, "has 'reasoning_content'; only an assistant's turn has"),
    ],
)
def test_a_users_turn_is_neither_trained_nor_thought(tmp_path, keys, text):
    with pytest.raises(DataError) as caught:
        opened(tmp_path, {}, user=keys).example(0)
    assert text in str(caught.value)
    assert opened(tmp_path, {}, user={"weight": 0}).example(0).messages[0].role == "user"


@pytest.mark.parametrize("key", ["reasoning_content", "thinking", "reasoning"])
def test_a_thought_is_read(tmp_path, key):
    example = opened(tmp_path, {key: "hm"}).example(0)
    assert [message.thought for message in example.messages] == ["", "hm", "", ""]


def test_tools_beside_the_turns_are_refused(tmp_path):
    path = tmp_path / "a.jsonl"
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    lines = [{"messages": turns, "tools": tools} for tools in ([], "[]", [{"name": "f"}])]
    path.write_text("\n".join(map(json.dumps, lines)))
    source = open_source(FileSection(path=str(path)))
    assert source.example(0).messages == source.example(1).messages
    with pytest.raises(DataError, match="line 3 has 'tools'; conversations with tools cannot"):
        source.example(2)


UNREAD = [{"mood": "gay"}, {"mood": "", "name": "Ann", "id": 7}, {"flavour": 1, "mood": "sad"}]


def test_unknown_keys_are_told_and_harmless_ones_are_not(tmp_path, tokenizers):
    source = opened(tmp_path, *UNREAD)
    keys = [source.example(number).unread_keys for number in range(3)]
    assert keys == [("mood",), (), ("flavour", "mood")]
    encoder = Encoder(tokenizers["smollm2"])
    drawn = draw_epoch([Part("a", 3, epochs=1)], DataSection().mixture, 0)
    for _ in range(2):  # encoded, then read from the table
        samples = Samples([source], drawn, encoder, tmp_path / "cache")
        list(samples.usable(range(3)))
        list(samples.usable(range(3)))
        assert samples.tally.num_unread_keys == 2
        assert samples.tally.notes() == [
            "the turns of 2 records have keys that nothing is made of; varifocal data check names "
            "them"
        ]


def test_a_stream_counts_what_it_tells_once(tmp_path, tokenizers):
    source = opened(tmp_path, *UNREAD)
    records = [source.example(number) for number in range(3)]
    samples = Samples(
        [source],
        draw_epoch([Part("a", 3, epochs=1)], DataSection().mixture, 0),
        Encoder(tokenizers["smollm2"]),
        tmp_path / "cache",
    )
    windows = streamed_passes([records], [1.0], samples.encoder, samples.tally)(0)
    assert len(next(windows)) == 128
    assert samples.tally.num_unread_keys == 2

"""Tokenising once gives what tokenising each piece gives; an encoder's fingerprint."""

import copy
import multiprocessing
import pickle
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from varifocal.data.encoding.encoder import Encoder
from varifocal.data.encoding.prefix_tokenizer import PieceTokenizer
from varifocal.data.example import Example, Image, Message

IMAGE = "<|image|>"
PARTS = [
    "<s>",
    "</s>",
    "<|im_end|>",
    "<|im_start|>",
    IMAGE,
    "<|im",
    " ",
    "\n",
    "\n\n",
    "A: ",
    "é🧲",
]
texts = st.lists(st.sampled_from([*PARTS, "assistant\n", "attract", "repel  ", "."])).map("".join)


def without_walls(tokenizer):
    """Tokenise every piece again from the start."""
    plain = PieceTokenizer(tokenizer)
    plain._wall, plain._wall_ids = re.compile(r"(?!)"), frozenset()
    return plain


@pytest.mark.parametrize("kind", ["tokenizers", "spaced_tokenizers"])
@settings(max_examples=150, deadline=None)
@given(text=texts, places=st.lists(st.floats(0, 1), max_size=4))
def test_walls_save_work_and_change_no_id(request, kind, text, places):
    tokenizer = request.getfixturevalue(kind)["plain"]
    cuts = sorted(round(place * len(text)) for place in places)
    fast = PieceTokenizer(tokenizer)
    assert fast.split(text, cuts) == without_walls(tokenizer).split(text, cuts)
    assert fast.split(text, cuts) == fast.split(text, cuts)  # and from memory


def test_a_text_between_walls_is_tokenised_once(tokenizers, monkeypatch):
    pieces = PieceTokenizer(tokenizers["smollm2"])
    read = []
    ids = pieces._ids
    monkeypatch.setattr(pieces, "_ids", lambda text: read.append(text) or ids(text))
    question = "<|im_start|>user\nattract?<|im_end|>\n<|im_start|>assistant\n"
    answer = "repel<|im_end|>"
    for _ in range(2):
        read.clear()
        pieces.split(question + answer + "\n", [len(question), len(question + answer)])
    assert read == [question + answer + "\n"]


def test_many_turns_are_not_tokenised_from_each_turn_to_the_end(tokenizers, monkeypatch):
    """An answer whose first letter merges with the blank before it is cut apart from its prompt."""
    pieces = PieceTokenizer(tokenizers["smollm2"])
    ids, read = pieces._ids, []
    monkeypatch.setattr(pieces, "_ids", lambda text: read.append(len(text)) or ids(text))
    text, cuts = "", []
    for turn in range(40):
        text += f"<|im_start|>user\nWhat of {turn}?<|im_end|>\n<|im_start|>A: "
        cuts.append(len(text))
        text += f"is {turn} repels<|im_end|>"
        cuts.append(len(text))
        text += "\n"
    split = pieces.split(text, cuts)
    assert sum(read) < 4 * len(text)  # 22 times as much without the walls
    assert split == without_walls(tokenizers["smollm2"]).split(text, cuts)


def test_what_another_caller_set_in_the_tokenizer_changes_nothing(tokenizers):
    tokenizer = copy.deepcopy(tokenizers["smollm2"])
    tokenizer.pad_token = "</s>"
    pieces = PieceTokenizer(tokenizer)
    before = pieces.split("attract or repel", [3])
    encoder = Encoder(tokenizer)
    fingerprint = encoder.fingerprint
    tokenizer("a", padding="max_length", max_length=2, truncation=True)
    assert tokenizer.backend_tokenizer.truncation is not None
    assert pieces.split("attract or repel", [3]) == before
    assert Encoder(tokenizer).fingerprint == fingerprint


def conversation():
    turns = (Message("user", (Image(data=b"x"), "attract?")), Message("assistant", ("repel",)))
    return Example(turns)


def encoder_of(tokenizer, **options):
    return Encoder(tokenizer, IMAGE, **{"tokens_per_image": 3, "max_length": 90, **options})


def _encode(encoder, queue):
    queue.put((encoder.fingerprint, encoder.encode(conversation()).input_ids.tolist()))


def test_an_encoder_goes_to_other_processes(tokenizers):
    encoder = encoder_of(tokenizers["smollm2"])
    expected = encoder.fingerprint, encoder.encode(conversation()).input_ids.tolist()
    copied = pickle.loads(pickle.dumps(encoder))
    assert (copied.fingerprint, copied.encode(conversation()).input_ids.tolist()) == expected
    fork = multiprocessing.get_context("fork")
    queue = fork.Queue()
    child = fork.Process(target=_encode, args=(encoder, queue))
    child.start()
    assert queue.get(timeout=200) == expected
    child.join()


def test_whatever_decides_the_ids_is_in_the_fingerprint(tokenizers):
    tokenizer = tokenizers["smollm2"]
    other = copy.deepcopy(tokenizer)
    other.add_tokens(["attract"])
    changed = [
        encoder_of(tokenizer, **options)
        for options in (
            {},
            {"tokens_per_image": 4},
            {"max_length": 91},
            {"overflow": "truncate_prompt"},
            {"system_prompt": "Be brief."},
            {"system_prompt": ""},
            {"train_on": "all"},
            {"chat_template": tokenizers["phi"].chat_template},
        )
    ]
    changed += [encoder_of(other), Encoder(tokenizer)]
    found = [encoder.fingerprint for encoder in changed]
    assert len(set(found)) == len(found)
    assert encoder_of(copy.deepcopy(tokenizer)).fingerprint == found[0]
    assert encoder_of(tokenizers["phi"]).fingerprint == found[7]  # the same template of its own
    assert all(re.fullmatch("[0-9a-f]{64}", fingerprint) for fingerprint in found)

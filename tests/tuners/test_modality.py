"""How a decoder's tokens are known to belong to a sample with an image, without a model.

Dimensions: B rows, T tokens.
"""

from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from varifocal.tuners import ImageLoraConfig
from varifocal.tuners.modality import (
    RowModality,
    check_text_is_untouched,
    has_no_image,
    segments_of_positions,
    text_is_base,
)

IMAGE = 60


class Cache(SimpleNamespace):
    """As many tokens as it is told to hold."""

    def get_seq_length(self):
        return self.length


class Reader(nn.Module):
    """A model that reads ids, some of them images' placeholders."""

    config = SimpleNamespace(image_token_id=IMAGE)

    def forward(self, **inputs):
        """Do nothing: its hooks read."""


def tokens(*rows):
    return torch.tensor(rows)


def read(given=None, shape=(1, 3), past=0):
    kwargs = {"input_ids": torch.zeros(shape), "past_key_values": Cache(length=past)}
    found = RowModality(None).read(given, (), kwargs)
    return None if found is None else found.tolist()


def test_given_ids_are_those_of_the_tokens_or_of_all_before_them_too():
    assert read(tokens([0, 1, 1])) == [[0, 1, 1]]
    assert read(tokens([0, 0, 1, 1]), shape=(1, 2), past=2) == [[1, 1]]
    assert read(tokens([1, 0, 1]), shape=(1, 1), past=3) == [[1]]  # of what is in the cache alone
    assert read(tokens([0, 1]), shape=(1, 2), past=5) == [[0, 1]]
    assert read() is None


@pytest.mark.parametrize(
    ("given", "past", "told"),
    [
        (tokens([0, 1]), 0, r"must be \[1, 3\] like the tokens; got \[1, 2\]"),
        (tokens([0, 1, 1, 1]), 3, r"must be \[1, 3\] like the tokens; got \[1, 4\]"),
        (tokens([0, 1], [0, 1]), 3, r"must be \[1, 3\] like the tokens; got \[2, 2\]"),
        (tokens([0, 1, 2]), 0, r"must be 0 \(text\) or 1 \(image\); got \[0, 1, 2\]"),
        (tokens([0, 1, -1]), 0, r"must be 0 \(text\) or 1 \(image\); got \[-1, 0, 1\]"),
    ],
)
def test_ids_that_do_not_fit_are_refused(given, past, told):
    with pytest.raises(ValueError, match=told):
        read(given, past=past)


@pytest.fixture
def seen():
    """What a reader's call leaves for its decoder: `seen(input_ids=...)` and what that reads."""
    reader = Reader()
    rows = RowModality(reader)

    def call(cache=None, **inputs):
        found = []
        shape = inputs.get("input_ids", torch.zeros(1, 3)).shape

        def decode(*_):
            kwargs = {"input_ids": torch.zeros(shape), "past_key_values": cache}
            found.append(rows.read(None, (), kwargs))
            rows.remember(SimpleNamespace(past_key_values=cache))

        handle = reader.register_forward_pre_hook(decode)
        try:
            reader(**inputs)
        finally:
            handle.remove()
        return found[0].tolist()

    call.rows = rows
    return call


def test_a_sample_is_marked_from_its_first_token_to_its_last(seen):
    ids = tokens([1, IMAGE, 2, 3, 4])
    assert seen(input_ids=ids) == [[1] * 5]
    assert seen(input_ids=tokens([1, 2, 3])) == [[0] * 3]
    packed = {"position_ids": tokens([0, 1, 2, 0, 1])}
    assert seen(input_ids=ids, **packed) == [[1, 1, 1, 0, 0]]
    assert seen(input_ids=ids, segment_ids=tokens([5, 5, 5, 5, 2])) == [[1, 1, 1, 1, 0]]
    # Positions of a padded row start again, and it is one sample all the same.
    assert seen(input_ids=ids, attention_mask=torch.ones(1, 5), **packed) == [[1] * 5]
    assert seen(input_ids=ids, segment_ids=tokens([0, 1])) == [[1] * 5]


def test_what_a_reader_has_shown_ends_with_its_call(seen):
    assert seen(input_ids=tokens([IMAGE, 1])) == [[1, 1]]
    shown = {"input_ids": torch.zeros(1, 2), "past_key_values": None}
    assert seen.rows.read(None, (), shown) is None
    with pytest.raises(ValueError, match="cannot tell which rows hold an image"):
        seen(pixel_values=torch.zeros(1))
    assert seen.rows.read(None, (), shown) is None  # nor is that of the next call


def test_a_cache_remembers_its_rows(seen):
    cache = Cache(length=0)
    assert seen(input_ids=tokens([IMAGE, 1], [1, 2]), cache=cache) == [[1, 1], [0, 0]]
    cache.length = 2
    assert seen(input_ids=tokens([1], [1]), cache=cache) == [[1], [0]]
    assert seen(input_ids=tokens([1], [IMAGE]), cache=cache) == [[1], [1]]
    assert seen(input_ids=tokens([1], [1]), cache=cache) == [[1], [1]]
    with pytest.raises(ValueError, match="the batch has 3 rows, but 2 are known"):
        seen(input_ids=tokens([1], [1], [1]), cache=cache)


@pytest.mark.parametrize(
    ("positions", "segments"),
    [
        (tokens([0, 1, 2]), None),
        (tokens([0, 1, 0, 1, 0]), [[0, 0, 1, 1, 2]]),
        (tokens([0, 0, 1]), [[0, 1, 1]]),
        (torch.zeros(3, 1, 3), None),  # of images' rows and columns
        (None, None),
    ],
)
def test_segments_begin_where_positions_do(positions, segments):
    shape = positions.shape if positions is not None else (1, 3)
    found = segments_of_positions(positions, shape)
    assert (None if found is None else found.tolist()) == segments


def test_nobody_can_say_that_a_meta_batch_has_no_image():
    assert has_no_image(None)
    assert has_no_image(torch.zeros(1, 2))
    assert not has_no_image(tokens([0, 1]))
    assert not has_no_image(torch.zeros(1, 2, device="meta"))


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.my_head = nn.Linear(2, 2)
        self.head = nn.Linear(2, 2)

    def get_output_embeddings(self):
        return self.my_head


def test_a_module_is_known_by_its_whole_name():
    check_text_is_untouched(Named(), ["head"])
    check_text_is_untouched(Named(), None)
    with pytest.raises(ValueError, match="modules_to_save trains my_head, which text passes"):
        check_text_is_untouched(Named(), ["my_head"])


def test_the_active_adapters_say_what_text_is(tiny):
    linears = {"target_modules": ["q_proj"]}
    model = get_peft_model(tiny("llama"), LoraConfig(**linears))
    assert not text_is_base(tiny("llama"))
    assert not text_is_base(model)
    assert text_is_base(get_peft_model(tiny("llama"), ImageLoraConfig(**linears)))


def test_a_gated_layer_runs_inside_its_decoder_and_on_its_tokens(tiny):
    config = ImageLoraConfig(target_modules=["q_proj"])
    model = get_peft_model(tiny("llama"), config)
    layer = model.get_base_model().model.layers[0].self_attn.q_proj
    states = torch.zeros(1, 3, layer.in_features, dtype=layer.weight.dtype)
    with pytest.raises(RuntimeError, match="ran outside its decoder's forward pass"):
        layer(states)
    seen = []

    def on_others(*_):
        with pytest.raises(
            ValueError, match=r"needs inputs of \[1, 2\] rows and tokens; got \[1, 3"
        ):
            layer(states)
        seen.append(1)
        raise InterruptedError

    handle = model.get_base_model().model.layers[1].register_forward_pre_hook(on_others)
    with pytest.raises(InterruptedError):
        model(input_ids=tokens([3, 4]))
    handle.remove()
    assert seen == [1]
    with pytest.raises(RuntimeError, match="ran outside its decoder's forward pass"):
        layer(states)  # what a pass found is gone, although it failed


@pytest.mark.parametrize("name", ["layer_replication", "target_parameters", "use_qalora"])
def test_more_that_would_change_text_is_refused(name):
    with pytest.raises(ValueError, match=f"cannot be kept with {name}"):
        ImageLoraConfig(**{name: [[0, 1]] if name != "use_qalora" else True})

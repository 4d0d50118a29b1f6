"""Rows, segments and their images."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from varifocal.errors import ModelError
from varifocal.models.image_rows import (
    expand_images,
    fit_length,
    images_within,
    row_modality,
    segments_from_positions,
)

lengths = st.lists(st.integers(1, 5), min_size=1, max_size=6)


@given(lengths, st.randoms(use_true_random=False))
def test_packed_segments_are_image_samples_or_not(lengths, random):
    segments = torch.tensor([[i for i, length in enumerate(lengths) for _ in range(length)]])
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    # a one-token segment after a one-token segment restarts too; after [0, 1] comes [0], not [2]
    assert torch.equal(segments_from_positions(positions), segments)
    is_image = torch.tensor([[random.random() < 0.2 for _ in range(sum(lengths))]])
    expected = [
        int(is_image[segments == segments[0, token]].any()) for token in range(sum(lengths))
    ]
    for given_as in ({"segment_ids": segments}, {"position_ids": positions}):
        assert row_modality(is_image, **given_as)[0].tolist() == expected
    mask = torch.ones_like(segments)
    whole = row_modality(is_image, position_ids=positions, attention_mask=mask)
    assert whole[0].tolist() == [int(is_image.any())] * sum(lengths)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=4), st.integers(1, 3), st.integers(1, 3))
def test_expanded_images_follow_their_rows(counts, tokens, copies):
    width = max(counts) * tokens + 1
    is_image = torch.zeros(len(counts), width, dtype=torch.bool)
    for row, count in enumerate(counts):
        is_image[row, width - count * tokens :] = True
    images = torch.arange(sum(counts))
    expanded = expand_images(images, is_image, tokens, copies).tolist()
    expected, start = [], 0
    for count in counts:
        expected += list(range(start, start + count)) * copies
        start += count
    assert expanded == expected


def test_expanding_the_wrong_number_of_images_is_refused():
    with pytest.raises(ModelError, match="2 image placeholders and 3 images"):
        expand_images(torch.zeros(3), torch.tensor([[True, True, False]]), 1, 2)


def test_images_of_earlier_turns_are_left_out():
    is_image = torch.tensor([[1, 1, 0, 1, 1, 0], [0, 1, 1, 0, 0, 0]]).bool()
    images = torch.arange(3)
    assert images_within(images, is_image, 2, 6).tolist() == [0, 1, 2]
    assert images_within(images, is_image, 2, 3).tolist() == [1]
    assert images_within(images[1:2], is_image, 2, 3).tolist() == [1]  # only the new one given
    assert images_within(images, is_image, 2, 1).tolist() == []


def test_marks_are_extended_to_what_was_generated():
    assert fit_length(torch.tensor([[0, 1], [2, 2]]), 4).tolist() == [[0, 1, 1, 1], [2, 2, 2, 2]]
    assert fit_length(torch.tensor([[True, True]]), 3).tolist() == [[True, True, False]]
    mark = torch.tensor([[1, 2]])
    assert fit_length(mark, 2) is mark

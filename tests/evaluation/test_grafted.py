"""Scores and answers of a model with eyes and MMA: batches against one plain row at a time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from peft import get_peft_model
from transformers import CLIPVisionConfig, CLIPVisionModel

from varifocal.evaluation.generation import greedy_answers
from varifocal.models.connector import PatchMLP
from varifocal.models.grafted import graft
from varifocal.models.likelihood import EncodedQuestion, score_options
from varifocal.models.vision import TransformersTower
from varifocal.tuners import MMAConfig

# peft 0.21 reads a name that transformers 5.23 has renamed
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is dep:FutureWarning")

IMAGE = 61  # one past the language model's vocabulary
TOKENS_PER_IMAGE = 4


def load_images(images: Sequence[int]) -> dict[str, torch.Tensor]:
    """Here an image is the seed of its pixels."""
    pixels = [
        torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        for seed in images
    ]
    return {"pixel_values": torch.stack(pixels)}


@pytest.fixture
def grafted(llama):
    torch.manual_seed(1)
    tower = TransformersTower(
        CLIPVisionModel(
            CLIPVisionConfig(
                hidden_size=16, intermediate_size=16, num_hidden_layers=2,
                num_attention_heads=2, image_size=8, patch_size=4,
            )
        )
    )  # fmt: skip
    connector = PatchMLP(16, llama.config.hidden_size, 8, tower.grid)
    assert connector.tokens_per_image == TOKENS_PER_IMAGE
    model = get_peft_model(graft(llama, tower, connector, IMAGE), MMAConfig(router_temperature=1.0))
    for name, parameter in model.named_parameters():
        if "mma_" in name or "modality_embedding" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    return model.double().eval()


@pytest.fixture
def mixed_questions(random_questions) -> list[EncodedQuestion]:
    """Text questions, and questions with one or two images in their prompt."""
    questions = random_questions(7)
    placeholder = np.full(TOKENS_PER_IMAGE, IMAGE, np.int32)
    for index, images in ((1, (5,)), (2, (6, 7)), (5, (8,))):
        plain = questions[index]
        ids = np.concatenate([plain.prompt_ids[:1], *[placeholder] * len(images), plain.prompt_ids])
        questions[index] = EncodedQuestion(ids, plain.option_ids, 1, images)
    return questions


def plain_row(model, question: EncodedQuestion, ids: Sequence[int]) -> torch.Tensor:
    """Logits of one row alone; the model finds its modality itself."""
    images = load_images(question.images) if question.images else {}
    with torch.no_grad():
        return model(input_ids=torch.tensor([list(ids)]), **images).logits[0]


@pytest.mark.parametrize("token_budget", [1, 100_000])
@pytest.mark.parametrize("tree", [None, False])
def test_scores_equal_plain_rows(grafted, mixed_questions, token_budget: int, tree) -> None:
    scores = score_options(
        grafted, mixed_questions, load_images, token_budget=token_budget, tree=tree
    )
    for got, question in zip(scores, mixed_questions, strict=True):
        expected = []
        start = len(question.prompt_ids)
        for option in question.option_ids:
            ids = [*question.prompt_ids.tolist(), *option.tolist()]
            log_probs = plain_row(grafted, question, ids).log_softmax(-1)
            expected.append(sum(float(log_probs[i - 1, ids[i]]) for i in range(start, len(ids))))
        assert got == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("token_budget", [1, 100_000])
def test_answers_equal_plain_rows(grafted, mixed_questions, token_budget: int) -> None:
    answers = greedy_answers(
        grafted, mixed_questions, load_images,
        stop_ids={3}, max_new_tokens=5, token_budget=token_budget,
    )  # fmt: skip
    for got, question in zip(answers, mixed_questions, strict=True):
        ids = question.prompt_ids.tolist()
        while len(ids) < len(question.prompt_ids) + 5:
            token = int(plain_row(grafted, question, ids)[-1].argmax())
            if token == 3:
                break
            ids.append(token)
        assert got == ids[len(question.prompt_ids) :]


def test_images_and_modality_matter(grafted, mixed_questions) -> None:
    """The two tests above would also pass with eyes that see nothing."""
    question = mixed_questions[1]
    other = EncodedQuestion(question.prompt_ids, question.option_ids, 1, (99,))
    as_text = EncodedQuestion(question.prompt_ids, question.option_ids, 0, question.images)
    scores = score_options(grafted, [question, other, as_text], load_images)
    assert scores[0] != pytest.approx(scores[1], abs=1e-3)
    assert scores[0] != pytest.approx(scores[2], abs=1e-3)

"""What is measured of text is the base's to the last bit where an adapter leaves text to it."""

from dataclasses import replace

import pytest
import torch
from peft import get_peft_model

from varifocal.evaluation.generation import greedy_answers
from varifocal.evaluation.readings import rate_texts
from varifocal.models.likelihood import score_options
from varifocal.tuners import ImageLoraConfig, MixLoraConfig, MMAConfig

TUNERS = {
    "mma": MMAConfig(text_route="base"),
    "mixlora": MixLoraConfig(num_factors=6, rank=2, text_route="base"),
    "lora": ImageLoraConfig(target_modules=["q_proj", "down_proj"]),
}


@pytest.fixture(params=TUNERS)
def model(request, llama):
    """A model whose adapter does much to samples with an image."""
    torch.manual_seed(1)
    tuned = get_peft_model(llama, replace(TUNERS[request.param]))
    for parameter in tuned.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.4)
    return tuned.double().eval()


def measured(model, questions):
    """Options by their likelihood in both layouts, answers as they are read, and as written."""
    trees = [score_options(model, questions, tree=tree) for tree in (True, False)]
    one = [replace(each, option_ids=each.option_ids[:1]) for each in questions]
    written = greedy_answers(model, one, None, stop_ids={5}, max_new_tokens=6)
    return trees, rate_texts(model, one), written


def test_scores_readings_and_answers_of_text_are_the_bases(model, random_questions):
    text = random_questions(6)
    assert {question.modality for question in text} == {0}
    on = measured(model, text)
    with model.disable_adapter():
        off = measured(model, text)
    assert on == off
    image = [replace(question, modality=1) for question in text]
    scores, readings, _ = measured(model, image)
    assert scores != on[0]
    assert readings != on[1]

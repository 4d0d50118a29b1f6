"""Options are scored with the choice that their prompt makes, however they are laid out."""

import pytest
import torch
from peft import get_peft_model

from varifocal.models.likelihood import score_options
from varifocal.tuners import MixLoraConfig


@pytest.fixture
def routed(llama):
    """A MixLoRA whose routers tell prompts apart and whose factors all matter."""
    torch.manual_seed(1)
    config = MixLoraConfig(num_factors=8, rank=2, dropout=0.0)
    model = get_peft_model(llama, config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "mixlora_" in name:
                parameter.normal_(std=0.4)
    return model.double()


def cached(model, question):
    """Read the prompt first, as an engine does, then each option after its cache."""
    prompt = torch.tensor(question.prompt_ids.tolist())[None]
    scores = []
    for option in question.option_ids:
        with torch.no_grad():
            read = model(input_ids=prompt, use_cache=True)
            logits, cache = [read.logits[:, -1:]], read.past_key_values
            ids = torch.tensor(option.tolist())[None]
            if ids.shape[1] > 1:
                behind = model(input_ids=ids[:, :-1], past_key_values=cache, use_cache=True)
                logits.append(behind.logits)
        log_probs = torch.cat(logits, dim=1)[0].double().log_softmax(-1)
        scores.append(float(log_probs.gather(1, ids.T).sum()))
    return scores


@pytest.mark.parametrize("tree", [True, False])
@pytest.mark.parametrize("token_budget", [1, 10_000])
def test_scores_are_those_behind_the_prompt_s_cache(routed, random_questions, tree, token_budget):
    """Rows of other lengths pad each other at a large budget."""
    questions = random_questions(6)
    scores = score_options(routed, questions, token_budget=token_budget, tree=tree)
    for got, question in zip(scores, questions, strict=True):
        assert got == pytest.approx(cached(routed, question), abs=1e-6)

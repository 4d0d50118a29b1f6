"""Numbers of a `config.json` with which every output is no number: refused by name, unbuilt."""

import json
import math

import pytest

from varifocal.errors import ModelError
from varifocal.models.checkpoint_files import check_config_file
from varifocal.models.sources import find_checkpoint

SOUND = {
    "model_type": "llama",
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000,
    "rope_scaling": {"rope_type": "llama3", "factor": 8.0},
    "vision_config": {"layer_norm_eps": 0, "attention_dropout": 0.0},
    "time_step_limit": [0.0, math.inf],  # as Mamba's configs have it
    "final_logit_softcapping": None,
    "logit_scale": 0,
    "factor": 0,
    "big": 10**400,
    "norm_eps": "1e-6",
}

WRONG = [
    ({"rms_norm_eps": math.nan}, "rms_norm_eps is nan; it must be a small number from 0, such as"),
    ({"rms_norm_eps": -1e-5}, "rms_norm_eps is -1e-05; it must be a small number"),
    ({"layer_norm_epsilon": math.inf}, "layer_norm_epsilon is inf; it must be a small number"),
    ({"vision_config": {"layer_norm_eps": -1}}, r"vision_config\.layer_norm_eps is -1; "),
    ({"rope_theta": 0}, "rope_theta is 0; it must be a number above 0$"),
    ({"rope_theta": -10000.0}, r"rope_theta is -10000\.0; it must be a number above 0$"),
    ({"rope_parameters": {"rope_theta": 0.0}}, r"rope_parameters\.rope_theta is 0\.0; .* above 0"),
    (
        {"rope_parameters": {"full_attention": {"rope_theta": math.inf}}},
        r"rope_parameters\.full_attention\.rope_theta is inf; .* above 0",
    ),
    ({"rope_scaling": {"factor": 0}}, r"rope_scaling\.factor is 0; it must be a number above 0"),
    ({"rope_scaling": {"long_factor": [1.0, 0.0]}}, r"long_factor is \[1\.0, 0\.0\]; .* above 0"),
    ({"final_logit_softcapping": 0.0}, r"final_logit_softcapping is 0\.0; .* above 0"),
    ({"text_config": {"query_pre_attn_scalar": 0}}, r"text_config\.query_pre_attn_scalar is 0"),
    ({"embedding_multiplier": math.nan}, "embedding_multiplier is nan; it must be a number$"),
    ({"hidden_dropout": 1.5}, r"hidden_dropout is 1\.5; it must be from 0 to 1$"),
]


@pytest.mark.parametrize(("changes", "words"), WRONG)
def test_a_number_that_no_model_can_have_is_refused_by_name(changes, words, tmp_path):
    file = tmp_path / "config.json"
    file.write_text(json.dumps(SOUND | changes))
    with pytest.raises(ModelError, match=rf"{file}: .*{words}"):
        check_config_file(file)
    with pytest.raises(ModelError, match=words):
        find_checkpoint(str(tmp_path))


def test_numbers_of_published_configs_pass(tmp_path):
    file = tmp_path / "config.json"
    file.write_text(json.dumps(SOUND))
    check_config_file(file)

#!/usr/bin/env bash
# PEFT 0.21.2 (transformers 5.23.0, torch 2.13.0, CPU): what a Lily adapter answers to a token depends
# on every other token of the batch, those of other rows and those that come later in its own row.
# Its router gives each token weights for the shared experts, and the forward pass then takes their
# mean over all rows and positions before it mixes the experts once for the whole batch. So batch
# mates, padding and packing change answers, an earlier logit depends on a later token though the
# model is causal (in training it has read the answer it is to predict), and decoding token by
# token with a cache differs from one pass over the text. LoRA on the same layers does none of this.
#
# Seen (largest difference of the logits):
#   lily: another row beside it 6.143, a later token edited 0.999, with a cache 2.779
#   lora: another row beside it 0.000, a later token edited 0.000, with a cache 0.000
#
# Exits with 1 when the library behaves differently.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet torch==2.13.0 transformers==5.23.0 peft==0.21.2 numpy==2.4.6
venv/bin/python - <<'END' 2>/dev/null
import sys

import torch
from peft import LilyConfig, LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

SIZES = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.3}
TARGETS = {"target_modules": ["q_proj", "v_proj"]}


def differences(config):
    torch.manual_seed(0)
    model = get_peft_model(LlamaForCausalLM(LlamaConfig(**SIZES, **HEADS)), config).eval()
    for parameter in model.parameters():
        if parameter.requires_grad:  # as if it had been trained
            torch.nn.init.normal_(parameter, std=0.5)
    row, mate = torch.arange(5, 13)[None], torch.arange(40, 48)[None]
    edited = row.clone()
    edited[0, -1] = 50
    with torch.no_grad():
        alone = model(input_ids=row).logits
        together = model(input_ids=torch.cat([row, mate])).logits[:1]
        later = model(input_ids=edited).logits[:, :-1]
        first = model(input_ids=row[:, :-1], use_cache=True)
        last = model(input_ids=row[:, -1:], past_key_values=first.past_key_values).logits
    pairs = [(alone, together), (alone[:, :-1], later), (alone[:, -1:], last)]
    return [(one - other).abs().max().item() for one, other in pairs]


seen = {
    "lily": differences(LilyConfig(r=4, **TARGETS)),
    "lora": differences(LoraConfig(r=4, **TARGETS)),
}
for name, (mate, later, cache) in seen.items():
    print(
        f"{name}: another row beside it {mate:.3f}, a later token edited {later:.3f}, "
        f"with a cache {cache:.3f}"
    )
sys.exit(0 if min(seen["lily"]) > 0.01 and max(seen["lora"]) < 1e-4 else 1)
END

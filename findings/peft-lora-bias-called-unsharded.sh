#!/usr/bin/env bash
# peft 0.21.2 (transformers 5.23.0, torch 2.13.0): an adapter with LoraConfig(lora_bias=True) is saved
# with the warning that its tensors "have invalid shape" and that "DeepSpeed ZeRO-3 / FSDP shards were
# not gathered before save_pretrained() and are therefore incomplete". There are no shards and nothing
# is incomplete: the check takes every tensor whose name holds ".lora_B" for a matrix, and
# `lora_B.bias` is a vector by design. The adapter loads and gives the same logits to the last bit.
# Code that turns warnings into errors cannot save such an adapter, and with state_dict=... there is
# no warning, since the check runs only on the state dict that PEFT makes itself.
#
# Seen:
#   saved: 1 warning, "Adapter 'default': 2 LoRA tensor(s) have invalid shape: ...q_proj.lora_B.bias:(8,)"
#   saved with state_dict: 0 warnings
#   reloaded: equal logits
#
# Exits with 1 when the library behaves differently.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet torch==2.13.0 transformers==5.23.0 peft==0.21.2
export HF_HUB_OFFLINE=1 HF_HOME="$folder/home"
venv/bin/python - <<'END'
import copy
import sys
import warnings

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

sizes = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2, "vocab_size": 16}
base = LlamaForCausalLM(LlamaConfig(num_hidden_layers=2, **sizes)).eval()
fresh = copy.deepcopy(base)
model = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"], lora_bias=True)).eval()
for name, parameter in model.named_parameters():
    if "lora_B" in name:
        torch.nn.init.normal_(parameter)


def warned(folder, **options):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.save_pretrained(folder, **options)
    return [str(one.message) for one in caught if "invalid shape" in str(one.message)]


plain, given = warned("plain"), warned("given", state_dict=model.state_dict())
print(f"saved: {len(plain)} warning, {plain[0][:110] if plain else ''}")
print(f"saved with state_dict: {len(given)} warnings")
warnings.simplefilter("ignore")
again = PeftModel.from_pretrained(fresh, "plain").eval()
ids = torch.arange(10)[None]
with torch.no_grad():
    equal = torch.equal(model(input_ids=ids).logits, again(input_ids=ids).logits)
print("reloaded:", "equal" if equal else "other", "logits")
sys.exit(0 if len(plain) == 1 and not given and equal else 1)
END

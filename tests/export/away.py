"""Load exports where Varifocal cannot be imported: `python away.py WORK.json`.

The page names what to do: `[{"form": ..., "directory": ..., "base": ..., "inputs": FILE, "to":
FILE}]`. Logits are written as safetensors.
"""

import json
import sys
from pathlib import Path


class Block:
    """Finds no Varifocal."""

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "varifocal":
            raise ImportError("Varifocal is not installed here")


def main() -> None:
    """Do the page's work."""
    sys.meta_path.insert(0, Block())
    import torch
    from peft import PeftModel
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForCausalLM, LlavaForConditionalGeneration

    def opened(job):
        directory, dtype = job["directory"], getattr(torch, job["dtype"])
        if job["form"] == "llava":
            return LlavaForConditionalGeneration.from_pretrained(directory, dtype=dtype)
        if job["form"] == "gguf":
            options = {"gguf_file": "model.gguf", "dtype": dtype}
            return AutoModelForCausalLM.from_pretrained(directory, **options)
        if job["form"] == "merged":
            return AutoModelForCausalLM.from_pretrained(directory, dtype=dtype)
        base = AutoModelForCausalLM.from_pretrained(job["base"], dtype=dtype)
        return PeftModel.from_pretrained(base, directory)

    for job in json.loads(Path(sys.argv[1]).read_text()):
        inputs = load_file(job["inputs"])
        with torch.no_grad():
            logits = opened(job).eval()(**inputs, use_cache=False).logits[0]
        save_file({"logits": logits.contiguous()}, job["to"])
    assert not any(name.split(".")[0] == "varifocal" for name in sys.modules)


if __name__ == "__main__":
    main()

"""GGUF files: read back by transformers in the gate, and by llama.cpp where it is installed."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from varifocal.assemble import open_run
from varifocal.errors import ModelError
from varifocal.export.exporting import export
from varifocal.export.order import Order

gguf = pytest.importorskip("gguf")

TEXT = "What comes after 1234, B's or  two\n\nlines? I'll say: naïve."


def read(directory):
    return gguf.GGUFReader(directory / "model.gguf")


@torch.no_grad()
def run_logits(run, ids, modality):
    _, parts = open_run(run.root)
    given = {"modality_ids": torch.full_like(ids, modality)} if modality is not None else {}
    return parts.model.eval()(input_ids=ids, use_cache=False, **given).logits[0]


def test_a_folded_route_is_written_as_qwen2_and_a_merged_lora_as_llama(mma_run, make_run, tmp_path):
    text, image = export(Order(mma_run, "gguf", num_prompts=4), tmp_path / "mma")
    (lora,) = export(Order(make_run({"type": "lora"}), "gguf", num_prompts=4), tmp_path / "lora")
    kinds = [
        read(done.directory).get_field("general.architecture").contents()
        for done in (text, image, lora)
    ]
    assert kinds == ["qwen2", "qwen2", "llama"]
    for done, run, modality in ((text, mma_run, 0), (image, mma_run, 1)):
        model = AutoModelForCausalLM.from_pretrained(done.directory, gguf_file="model.gguf")
        ids = torch.arange(40, 60)[None]
        with torch.no_grad():
            found = model.eval()(input_ids=ids).logits[0]
        torch.testing.assert_close(found, run_logits(run, ids, modality), rtol=0, atol=2e-5)


def llama_cpp_logits(directory, ids):
    llama_cpp = pytest.importorskip("llama_cpp")
    model = llama_cpp.Llama(
        str(directory / "model.gguf"),
        n_ctx=128,
        n_threads=1,
        logits_all=True,
        type_k=llama_cpp.GGML_TYPE_F32,
        type_v=llama_cpp.GGML_TYPE_F32,
        verbose=False,
    )
    model.eval(ids)
    return torch.tensor(model.scores[: len(ids)]), model


@pytest.mark.parametrize("tuner", ["mma", "lora"])
def test_llama_cpp_says_what_the_run_says(mma_run, make_run, tmp_path, tuner):
    run = mma_run if tuner == "mma" else make_run({"type": "lora"})
    done = export(Order(run, "gguf", num_prompts=2), tmp_path / "out")[0]
    tokenizer = open_run(run.root)[1].encoder.tokenizer
    ids = tokenizer(TEXT)["input_ids"]
    found, model = llama_cpp_logits(done.directory, ids)
    assert model.tokenize(TEXT.encode(), add_bos=False) == ids
    expected = run_logits(run, torch.tensor([ids]), 0 if tuner == "mma" else None)
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)
    assert torch.equal(found.argmax(-1), expected.argmax(-1))


def test_its_chat_template_is_the_runs_with_its_system_turn(mma_run, tmp_path):
    done = export(Order(mma_run, "gguf", num_prompts=2), tmp_path / "out")[0]
    reader = read(done.directory)
    template = reader.get_field("tokenizer.chat_template").contents()
    parts = open_run(mma_run.root)[1]
    text = parts.encoder.tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], chat_template=template, tokenize=False
    )
    assert text == "<s>system\nBe brief.</s>\n<s>user\nHi</s>\n"
    assert (
        reader.get_field("tokenizer.ggml.eot_token_id").contents() == parts.encoder.end_of_turn_id
    )


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_written_as_such(mma_run, tmp_path, dtype):
    done = export(Order(mma_run, "gguf", dtype=dtype, num_prompts=4), tmp_path / "out")[1]
    kinds = {tensor.name: tensor.tensor_type.name for tensor in read(done.directory).tensors}
    assert kinds["blk.0.attn_q.weight"] == {"bfloat16": "BF16", "float16": "F16"}[dtype]
    assert kinds["blk.0.attn_q.bias"] == "F32"


@pytest.mark.parametrize("change", ["rope", "tokenizer", "kind"])
def test_what_was_not_tried_against_llama_cpp_is_refused(make_run, tmp_path, change, save_with):
    run = make_run({"type": "none"}, language=save_with(change))
    with pytest.raises(ModelError, match=r"convert_hf_to_gguf\.py"):
        export(Order(run, "gguf", num_prompts=2), tmp_path / "out")
    assert not (tmp_path / "out").exists()

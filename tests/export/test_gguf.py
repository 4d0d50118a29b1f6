"""GGUF files: read back by transformers in the gate, and by llama.cpp where it is installed."""

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.convert_slow_tokenizer import bytes_to_unicode

from varifocal.assemble import open_run
from varifocal.errors import ModelError
from varifocal.exporting.export import export
from varifocal.exporting.request import Order

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


def piece(tokenizer, index):
    """A token as llama.cpp names it: its text, or its byte."""
    token = tokenizer.convert_ids_to_tokens(index)
    if index in tokenizer.all_special_ids:
        return token
    raw = bytes(bytes_of_letters()[letter] for letter in token)
    return raw.decode() if len(raw) > 1 or raw[0] < 128 else f"byte: \\x{raw[0]:02x}"


def bytes_of_letters():
    return {letter: byte for byte, letter in bytes_to_unicode().items()}


@pytest.mark.slow
@pytest.mark.parametrize("tuner", ["mma", "lora"])
def test_llama_cpp_says_what_the_run_says(mma_run, make_run, tmp_path, ask_llama_cpp, tuner):
    run = mma_run if tuner == "mma" else make_run({"type": "lora"})
    routes = [0, 1] if tuner == "mma" else [None]
    done = export(Order(run, "gguf", num_prompts=2), tmp_path / "out")
    tokenizer = open_run(run.root)[1].encoder.tokenizer
    ids = tokenizer(TEXT)["input_ids"]
    jobs = [{"model": str(one.directory / "model.gguf"), "text": TEXT} for one in done]
    for route, found in zip(routes, ask_llama_cpp(jobs), strict=True):
        assert found["ids"] == ids
        logits = run_logits(run, torch.tensor([ids]), route)
        expected = logits[-1].softmax(-1).tolist()
        assert sum(found["next"].values()) == pytest.approx(1)
        for index, probability in enumerate(expected):  # the graft's image token is no word
            assert found["next"][piece(tokenizer, index)] == pytest.approx(probability, abs=1e-5)
        assert found["greedy"].startswith(tokenizer.decode(logits[-1].argmax()).strip("\ufffd"))


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


@pytest.mark.slow
def test_llama_cpp_reads_a_system_prompt_beyond_ascii(make_run, tmp_path, ask_llama_cpp):
    prompt = 'Sei "knapp", größte 🧲.\nUnd {{ freundlich }}.'
    run = make_run({"type": "lora"}, data={"system_prompt": prompt})
    (done,) = export(Order(run, "gguf", num_prompts=2), tmp_path / "out")
    turns = [{"role": "user", "content": "Hi"}]
    job = {"model": str(done.directory / "model.gguf"), "text": TEXT, "turns": turns}
    (found,) = ask_llama_cpp([job])
    assert found["chat"] == f"<s>system\n{prompt}</s>\n<s>user\nHi</s>\n<s>assistant\n"


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

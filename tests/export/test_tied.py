"""A LoRA on one of two tables that are one: every export changes that one alone, as PEFT does."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import safe_open
from transformers import AutoModelForCausalLM, LlavaForConditionalGeneration

from varifocal.assemble import open_run
from varifocal.data.example import Message
from varifocal.errors import RecipeError
from varifocal.exporting.export import export_run
from varifocal.exporting.plain_tensors import plain_model, write_plain
from varifocal.exporting.request import Order
from varifocal.serving.engine import Engine, Sampling

IDS = torch.arange(40, 60)[None]


def make(make_run, save_tied, names, **options):
    tuner = {"type": "lora", "target_modules": list(names)}
    return make_run(tuner, language=save_tied, **options)


def timid(run):
    """Let the adapter change little, as a low rate does."""
    _, parts = open_run(run.root)
    for name, parameter in parts.model.named_parameters():
        if "lora_B" in name or "lora_embedding_B" in name:
            parameter.data.mul_(1e-3)
    parts.model.save_pretrained(run.adapter, save_embedding_layers=False)
    return run


@torch.no_grad()
def logits(model):
    return model.eval()(input_ids=IDS, use_cache=False).logits[0]


def by_hand(save_tied, run, names):
    """The tied model with s B A added to a copy of each adapted table."""
    model = AutoModelForCausalLM.from_pretrained(save_tied)
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    with safe_open(run.adapter / "adapter_model.safetensors", "pt") as file:
        stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    end = next(name for name in stored if "lora" in name).partition("lm_head.")[0]
    start = end.partition("model.embed_tokens")[0]
    with torch.no_grad():
        if "lm_head" in names:
            down, up = (stored[f"{start}lm_head.lora_{part}.weight"] for part in "AB")
            model.lm_head.weight += 2.0 * up @ down
        if "embed_tokens" in names:
            down, up = (stored[f"{start}model.embed_tokens.lora_embedding_{p}"] for p in "AB")
            model.model.embed_tokens.weight += 2.0 * (up @ down).T
    return model


@pytest.mark.parametrize("names", [["lm_head"], ["embed_tokens"], ["lm_head", "embed_tokens"]])
@pytest.mark.parametrize("form", ["merged", "gguf", "lora", "llava"])
@pytest.mark.parametrize("learnt", ["much", "little"])
def test_an_export_changes_the_table_that_was_trained(
    make_run, tmp_path, save_tied, names, form, learnt
):
    run = make(make_run, save_tied, names, tower="clip" if form == "llava" else None)
    run = timid(run) if learnt == "little" else run
    (done,) = export_run(Order(run, form, dtype="float32", num_prompts=2), tmp_path / "out")
    if form == "lora":
        base = AutoModelForCausalLM.from_pretrained(save_tied)
        with pytest.warns(UserWarning, match="tie_word_embeddings"):
            model = PeftModel.from_pretrained(base, tmp_path / "out")
    elif form == "llava":
        model = LlavaForConditionalGeneration.from_pretrained(tmp_path / "out")
    else:
        options = {"gguf_file": "model.gguf"} if form == "gguf" else {}
        model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", **options)
        assert model.lm_head.weight is not model.get_input_embeddings().weight
        assert not model.config.tie_word_embeddings
    expected = logits(by_hand(save_tied, run, names))
    torch.testing.assert_close(logits(model)[:, : expected.shape[-1]], expected, rtol=0, atol=2e-5)
    _, parts = open_run(run.root)
    torch.testing.assert_close(logits(parts.model), expected, rtol=0, atol=2e-5)
    assert any("one table for embedding and head" in note for note in done.notes)
    assert not any("not in a LoRA" in note for note in done.notes)


def test_a_head_that_was_trained_whole_is_written_beside_the_embedding(tmp_path, save_tied):
    base = AutoModelForCausalLM.from_pretrained(save_tied)
    config = LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"])
    with pytest.warns(UserWarning, match="tie_word_embeddings"):
        model = get_peft_model(base, config)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    expected = logits(model)
    write_plain(plain_model(model.get_base_model(), torch.float32), tmp_path / "out")
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(logits(found), expected, rtol=0, atol=2e-5)
    assert not torch.equal(found.lm_head.weight, found.get_input_embeddings().weight)
    torch.testing.assert_close(logits(model), expected, rtol=0, atol=0)


def test_what_leaves_the_tables_alone_leaves_them_one(make_run, tmp_path, save_tied):
    for tuner in ({"type": "lora"}, {"type": "full"}, {"type": "mma"}):
        run = make_run(tuner, language=save_tied, tower=None)
        done = export_run(Order(run, "merged", num_prompts=2), tmp_path / tuner["type"])[0]
        model = AutoModelForCausalLM.from_pretrained(done.directory)
        assert model.lm_head.weight is model.get_input_embeddings().weight


@pytest.mark.parametrize("names", [["lm_head"], ["embed_tokens"]])
def test_an_engine_answers_as_peft_does(make_run, save_tied, names):
    run = make(make_run, save_tied, names, tower=None)
    _, parts = open_run(run.root)
    engine = Engine(parts.model, parts.encoder)
    request = engine.submit((Message("user", ("What?",)),), Sampling(12, logprobs=0))
    written = [one.logprob for piece in request for one in piece.logprobs]
    encoded = torch.from_numpy(request.encoded.input_ids).long()[None]
    table = by_hand(save_tied, run, names).eval()
    output = table.generate(
        encoded,
        attention_mask=torch.ones_like(encoded),
        max_new_tokens=12,
        eos_token_id=sorted(engine.stop_ids),
        output_logits=True,
        return_dict_in_generate=True,
    )
    expected = [float(step.log_softmax(-1).max()) for step in output.logits]
    assert len(written) > 1
    assert written == pytest.approx(expected[: len(written)], abs=1e-4)


@pytest.mark.parametrize(
    ("name", "reason"), [("lm_head", "is the output head"), ("embed_tokens", "is no linear layer")]
)
def test_mixlora_refuses_both_tables(make_run, save_tied, name, reason):
    tuner = {"type": "mixlora", "target_modules": [name]}
    with pytest.raises(RecipeError, match=reason):
        make_run(tuner, language=save_tied, tower=None)

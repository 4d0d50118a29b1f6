"""Exports know the end of turn that was trained, and stop there as the run does."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlavaForConditionalGeneration

from varifocal.assemble import open_run
from varifocal.data.example import Example, Message
from varifocal.errors import ModelError
from varifocal.exporting import artifacts
from varifocal.exporting.export import export_run
from varifocal.exporting.request import Order
from varifocal.serving.engine import Engine, Sampling

ASKED = (Message("user", ("Which one?",)),)


@pytest.fixture(scope="module")
def ending_run(make_run, save_own_end):
    """A run that ends every answer at once: its end of turn is the likeliest token everywhere."""
    run = make_run({"type": "lora", "target_modules": ["lm_head"]}, language=save_own_end)
    _, parts = open_run(run.root)
    head = parts.base.language_model.lm_head
    end = parts.encoder.end_of_turn_id
    with torch.no_grad():
        # what the last norm gives has no fixed sign, so the update adds |A h| of a mean direction
        states = states_of(parts)
        head.lora_A["default"].weight.zero_()
        head.lora_A["default"].weight[0] = states.mean(0)
        head.lora_B["default"].weight.zero_()
        head.lora_B["default"].weight[end, 0] = 50.0
    parts.model.save_pretrained(run.adapter, save_embedding_layers=False)
    return run


@torch.no_grad()
def states_of(parts):
    encoded = parts.encoder.encode(Example(ASKED), with_answer=False)
    ids = torch.from_numpy(encoded.input_ids).long()[None]
    return parts.base.language_model.model(input_ids=ids).last_hidden_state[0, -1:]


def ids_of(run):
    encoder = open_run(run.root)[1].encoder
    return encoder.tokenizer.eos_token_id, encoder.end_of_turn_id


@pytest.mark.parametrize("tuner", ["lora", "mma", "full", "none"])
def test_generation_configs_list_both_ends(make_run, tmp_path, save_own_end, tuner):
    run = make_run({"type": tuner}, language=save_own_end, tower=None)
    eos, end = ids_of(run)
    assert eos != end
    for done in export_run(Order(run, "merged", num_prompts=2), tmp_path / "out"):
        page = json.loads((done.directory / "generation_config.json").read_text())
        assert page["eos_token_id"] == [eos, end]
        assert (done.stops.end_of_turn, done.stops.stop_ids) == (end, (eos, end))
    if tuner == "full":
        page = json.loads((run.model / "generation_config.json").read_text())
        assert page["eos_token_id"] == [eos, end]


def test_a_llavas_lists_both_ends(make_run, tmp_path, save_own_end):
    run = make_run({"type": "lora"}, language=save_own_end)
    eos, end = ids_of(run)
    (done,) = export_run(Order(run, "llava", num_prompts=2), tmp_path / "out")
    model = LlavaForConditionalGeneration.from_pretrained(done.directory)
    assert model.generation_config.eos_token_id == [eos, end]


def test_a_gguf_names_both_ends(make_run, tmp_path, save_own_end):
    gguf = pytest.importorskip("gguf")
    run = make_run({"type": "lora"}, language=save_own_end, tower=None)
    eos, end = ids_of(run)
    export_run(Order(run, "gguf", num_prompts=2), tmp_path / "out")
    reader = gguf.GGUFReader(tmp_path / "out" / "model.gguf")
    told = [reader.get_field(f"tokenizer.ggml.{n}_token_id").contents() for n in ("eos", "eot")]
    assert told == [eos, end]
    assert reader.get_field("tokenizer.ggml.token_type").contents()[end] == 3  # control


def test_a_lora_tells_it_in_its_card_and_brings_the_template(make_run, tmp_path, save_own_end):
    run = make_run({"type": "lora"}, language=save_own_end, tower=None)
    eos, end = ids_of(run)
    export_run(Order(run, "lora", num_prompts=2), tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"model.generation_config.eos_token_id = [{eos}, {end}]" in card
    assert "Answers end with '<|eot|>'" in card
    template = (tmp_path / "out" / "chat_template.jinja").read_text()
    assert template == open_run(run.root)[1].encoder.template.jinja


def test_run_engine_and_export_end_the_same_answer(ending_run, tmp_path):
    """The run writes its end of turn, which the base's generation config does not know."""
    _, parts = open_run(ending_run.root)
    engine = Engine(parts.model, parts.encoder, parts.load_images)
    request = engine.submit(ASKED, Sampling(20))
    assert "".join(piece.text for piece in request) == ""
    assert request.finish_reason == "stop"
    (done,) = export_run(Order(ending_run, "merged", num_prompts=2), tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    turns = [{"role": "user", "content": "Which one?"}]
    prompt = tokenizer.apply_chat_template(
        turns, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    written = model.generate(**prompt, max_new_tokens=20)[0, prompt["input_ids"].shape[1] :]
    assert written.tolist() == [done.stops.end_of_turn]
    with torch.no_grad():
        ids = torch.from_numpy(request.encoded.input_ids).long()[None]
        mask = torch.ones_like(ids)
        own = parts.model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=20)
    assert own[0, ids.shape[1] :].tolist() == written.tolist()


@pytest.mark.parametrize("form", ["merged", "llava"])
def test_what_does_not_stop_there_does_not_leave(ending_run, tmp_path, monkeypatch, form):
    write = artifacts.write_plain

    def forgetful(content, directory, **options):
        content.generation_config.eos_token_id = content.generation_config.eos_token_id[0]
        write(content, directory, **options)

    monkeypatch.setattr(artifacts, "write_plain", forgetful)
    eos, end = ids_of(ending_run)
    with pytest.raises(ModelError, match=rf"not stop at the end of turn {end}.*\[{eos}\]"):
        export_run(Order(ending_run, form, num_prompts=2), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_stops_before_the_run_does_not_leave(make_run, tmp_path, monkeypatch, save_own_end):
    run = make_run({"type": "lora"}, language=save_own_end, tower=None)
    write = artifacts.write_plain

    def hasty(content, directory, **options):
        everything = list(range(content.config.vocab_size))
        content.generation_config.eos_token_id = everything
        write(content, directory, **options)

    monkeypatch.setattr(artifacts, "write_plain", hasty)
    with pytest.raises(ModelError, match="ends an answer after 1 tokens, and the run the same"):
        export_run(Order(run, "merged", num_prompts=2), tmp_path / "out")

"""GGUF files: read back by transformers in the gate, and by llama.cpp where it is installed."""

import json
from itertools import takewhile

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, normalizers
from transformers import AutoModelForCausalLM

from languages import OWN_END, VICUNA, byte_level, save_language, sentencepiece
from tiny import TEMPLATE
from varifocal.assemble import open_run
from varifocal.errors import ModelError
from varifocal.exporting import plain_tensors
from varifocal.exporting.export import export_run
from varifocal.exporting.request import Order, check_possible, language_section
from varifocal.exporting.vocabulary import vocabulary_of
from varifocal.models.decoding import decode, pad_left, stop_ids
from varifocal.models.load import load_processor
from varifocal.tuners.plugin import evaluating
from written import piece

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
    text, image = export_run(Order(mma_run, "gguf", num_prompts=4), tmp_path / "mma")
    (lora,) = export_run(
        Order(make_run({"type": "lora"}), "gguf", num_prompts=4), tmp_path / "lora"
    )
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


@pytest.mark.slow
def test_llama_cpp_reads_q8_0_as_the_gate_does(make_run, tmp_path, ask_llama_cpp):
    run = make_run({"type": "lora"})
    (done,) = export_run(Order(run, "gguf", dtype="q8_0", num_prompts=2), tmp_path / "out")
    (found,) = ask_llama_cpp([{"model": str(done.directory / "model.gguf"), "text": TEXT}])
    model = AutoModelForCausalLM.from_pretrained(done.directory, gguf_file="model.gguf").eval()
    tokenizer = open_run(run.root)[1].encoder.tokenizer
    with torch.no_grad():
        logits = model(input_ids=tokenizer(TEXT, return_tensors="pt").input_ids).logits[0, -1]
    (answer,) = found["answers"]  # llama.cpp rounds what it multiplies by to 8 bits, too
    for index, probability in enumerate(logits.softmax(-1).tolist()):
        assert answer["next"][piece(tokenizer, index)] == pytest.approx(probability, abs=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("tuner", ["mma", "lora"])
def test_llama_cpp_says_what_the_run_says(mma_run, make_run, tmp_path, ask_llama_cpp, tuner):
    run = mma_run if tuner == "mma" else make_run({"type": "lora"})
    routes = [0, 1] if tuner == "mma" else [None]
    done = export_run(Order(run, "gguf", num_prompts=2), tmp_path / "out")
    tokenizer = open_run(run.root)[1].encoder.tokenizer
    ids = tokenizer(TEXT)["input_ids"]
    models = [str(one.directory / "model.gguf") for one in done]
    jobs = [{"model": model, "text": TEXT, "tokens": 64} for model in models]
    for route, found in zip(routes, ask_llama_cpp(jobs), strict=True):
        assert found["ids"] == ids
        (answer,) = found["answers"]
        expected = run_logits(run, torch.tensor([ids]), route)[-1].softmax(-1).tolist()
        assert sum(answer["next"].values()) == pytest.approx(1)
        for index, probability in enumerate(expected):  # the graft's image token is no word
            assert answer["next"][piece(tokenizer, index)] == pytest.approx(probability, abs=1e-5)
        written = greedy_text(run, ids, route, 64)
        assert answer["greedy"] == [piece(tokenizer, index) for index in written]
        assert answer["ended"] == (len(written) < 64)


def greedy_text(run, ids, modality, tokens):
    """What a run goes on to write after a text, without the end of turn."""
    _, parts = open_run(run.root)
    ends = stop_ids(parts.base, parts.encoder.end_of_turn_id)
    row = pad_left([ids], [0 if modality is None else modality])
    with evaluating(parts.model):
        written = decode(parts.model, row, {}, max_new_tokens=tokens)
        return list(takewhile(lambda token: token not in ends, map(int, written)))


def test_its_chat_template_is_the_runs_with_its_system_turn(mma_run, tmp_path):
    done = export_run(Order(mma_run, "gguf", num_prompts=2), tmp_path / "out")[0]
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


CHATS = [
    "What is it?",
    "Ein Baum im Garten: größer, 樹, 🧲!",
    "one  two\n\nthree\ttabs ",
    "I'll say: 'four' lines. The dog asks 1234 users",
]


@pytest.mark.slow
@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize("template", [VICUNA, TEMPLATE])
def test_llama_cpp_reads_sentencepiece_as_the_run(
    make_run, tmp_path, ask_llama_cpp, legacy, template
):
    save_language(tmp_path / "lm", tokenizer=sentencepiece(legacy=legacy), template=template)
    run = make_run({"type": "mma"}, tower=None, language=tmp_path / "lm")
    done = export_run(Order(run, "gguf", num_prompts=2), tmp_path / "out")[0]
    encoder = open_run(run.root)[1].encoder
    turns = [[{"role": "user", "content": chat}] for chat in CHATS]
    model = str(done.directory / "model.gguf")
    jobs = [{"model": model, "turns": turn} for turn in turns]
    for turn, found in zip(turns, ask_llama_cpp(jobs), strict=True):
        text = encoder.template.render(turn, add_generation_prompt=True)
        assert found["chat"] == text.removeprefix("<s>")  # which llama.cpp sets by itself
        ids = encoder.tokenizer(text, add_special_tokens=False).input_ids
        assert [1, *found["chat_ids"]] == ids


def test_sentencepiece_whose_merges_are_not_its_pieces_is_refused(make_run, tmp_path):
    tokenizer = sentencepiece()
    page = json.loads(tokenizer.backend_tokenizer.to_str())
    del page["model"]["merges"][0]
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(page))
    save_language(tmp_path / "lm", tokenizer=tokenizer)
    with pytest.raises(ModelError, match="this one is neither"):
        check(make_run({"type": "none"}, tower=None, language=tmp_path / "lm"))


WITHOUT_SPECIAL = VICUNA.replace("{{ bos_token }}", "").replace("</s>", " ")


def test_blanks_that_llama_cpp_would_set_after_a_special_token_are_refused(make_run, tmp_path):
    template = VICUNA.replace("{{ bos_token }}", "")  # a blank in front, and none after "</s>"
    save_language(tmp_path / "lm", tokenizer=sentencepiece(legacy=False), template=template)
    with pytest.raises(ModelError, match="read this run's chat prompts otherwise"):
        check(make_run({"type": "none"}, tower=None, language=tmp_path / "lm"))


def check(run):
    recipe, parts = open_run(run.root)
    check_possible(Order(run, "gguf"), recipe, parts)
    return vocabulary_of(load_processor(language_section(recipe)), parts.encoder)


@pytest.mark.parametrize(
    ("make", "template", "expected"),
    [
        (sentencepiece, VICUNA, (None, True, True)),
        (lambda: sentencepiece(legacy=False), VICUNA, (None, True, False)),
        (lambda: sentencepiece(legacy=False), WITHOUT_SPECIAL, (None, False, True)),
        (byte_level, VICUNA, ("gpt-2", False, False)),
        (byte_level, OWN_END, ("gpt-2", False, False)),
    ],
)
def test_a_begin_of_sequence_and_blanks_are_set_as_the_runs_prompts_have_them(
    make_run, tmp_path, make, template, expected
):
    special = ["<|eot|>"] if template == OWN_END else []
    save_language(tmp_path / "lm", tokenizer=make(), template=template, special=special)
    found = check(make_run({"type": "none"}, tower=None, language=tmp_path / "lm"))
    assert (found.pre, found.adds_bos, found.adds_blank) == expected


def test_what_llama_cpp_does_not_normalise_is_said(make_run, tmp_path):
    tokenizer = byte_level()
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    save_language(tmp_path / "lm", tokenizer=tokenizer)
    found = check(make_run({"type": "none"}, tower=None, language=tmp_path / "lm"))
    assert [note.split(" does not")[0] for note in found.notes] == ["llama.cpp"]
    assert "(NFC)" in found.notes[0]


@pytest.mark.parametrize("flag", ["lstrip", "rstrip"])
def test_an_added_tokens_flags_are_refused_where_the_template_depends_on_them(
    make_run, tmp_path, flag
):
    tokenizer = byte_level()
    tokenizer.add_tokens([AddedToken("<|eot|>", special=True, **{flag: True})])
    save_language(
        tmp_path / "lm", tokenizer=tokenizer, template=OWN_END.replace("<|eot|>", " <|eot|> ")
    )
    with pytest.raises(ModelError, match=r"does not know the flags of <\|eot\|>"):
        check(make_run({"type": "none"}, tower=None, language=tmp_path / "lm"))
    tokenizer.chat_template = OWN_END.replace("\n", "")
    tokenizer.save_pretrained(tmp_path / "lm")
    found = check(make_run({"type": "none"}, tower=None, language=tmp_path / "lm"))
    assert "flags (lstrip, rstrip, single_word) of <|eot|>" in found.notes[0]


@pytest.mark.slow
def test_llama_cpp_reads_a_system_prompt_beyond_ascii(make_run, tmp_path, ask_llama_cpp):
    prompt = 'Sei "knapp", größte 🧲.\nUnd {{ freundlich }}.'
    run = make_run({"type": "lora"}, data={"system_prompt": prompt})
    (done,) = export_run(Order(run, "gguf", num_prompts=2), tmp_path / "out")
    turns = [{"role": "user", "content": "Hi"}]
    job = {"model": str(done.directory / "model.gguf"), "turns": turns}
    (found,) = ask_llama_cpp([job])
    assert found["chat"] == f"<s>system\n{prompt}</s>\n<s>user\nHi</s>\n<s>assistant\n"


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_written_as_such(mma_run, tmp_path, dtype):
    done = export_run(Order(mma_run, "gguf", dtype=dtype, num_prompts=4), tmp_path / "out")[1]
    kinds = {tensor.name: tensor.tensor_type.name for tensor in read(done.directory).tensors}
    assert kinds["blk.0.attn_q.weight"] == {"bfloat16": "BF16", "float16": "F16"}[dtype]
    assert kinds["blk.0.attn_q.bias"] == "F32"


@pytest.mark.parametrize("tuner", ["full", "none"])
def test_a_run_without_adapters_is_written_as_its_language_model(make_run, tmp_path, tuner):
    run = make_run({"type": tuner})
    (done,) = export_run(Order(run, "gguf", num_prompts=2), tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(done.directory, gguf_file="model.gguf").eval()
    ids = torch.arange(40, 60)[None]
    with torch.no_grad():
        found = model(input_ids=ids).logits[0]
    torch.testing.assert_close(found, run_logits(run, ids, None), rtol=0, atol=2e-5)


@pytest.mark.parametrize("to", ["gguf", "llamacpp"])
def test_q8_0_is_near_the_run_by_its_own_bound(make_run, tmp_path, to):
    run = make_run({"type": "lora"}, "siglip")
    wide, narrow = (
        export_run(Order(run, to, dtype=dtype, num_prompts=4), tmp_path / dtype)[0]
        for dtype in ("float32", "q8_0")
    )
    assert narrow.rounding is not None
    assert narrow.rounding.dtype == "q8_0"
    assert narrow.rounding.agreement > 0.9
    assert narrow.stops.same == narrow.stops.answers  # before rounding
    expected = {tensor.name: tensor.data for tensor in read(wide.directory).tensors}
    for tensor in read(narrow.directory).tensors:
        exact = expected.pop(tensor.name)
        blocks = exact.ndim == 2 and exact.shape[-1] % 32 == 0
        kind = "Q8_0" if blocks else {2: "F16", 1: "F32"}[exact.ndim]
        assert tensor.tensor_type.name == kind
        if blocks:  # half a step of a 127th, and the scale's own rounding to float16
            found = gguf.dequantize(tensor.data, tensor.tensor_type).reshape(-1, 32)
            largest = abs(exact.reshape(-1, 32)).max(-1, keepdims=True)
            assert (abs(found - exact.reshape(-1, 32)) <= largest * (1 / 254 + 2**-11)).all()
            assert (found != exact.reshape(-1, 32)).any()
    assert not expected
    header = read(narrow.directory).get_field("general.file_type").contents()
    assert header == gguf.LlamaFileType.MOSTLY_Q8_0


def test_q8_0_refuses_what_its_scales_cannot_hold(make_run, tmp_path, monkeypatch):
    run = make_run({"type": "none"}, tower=None)
    produce = plain_tensors.plain_tensors

    def with_a_large_number(model, *, merge=True):
        return produce(model, merge=merge) | {
            "lm_head.weight": lambda: 1e7 * produce(model)["lm_head.weight"]().sign()
        }

    monkeypatch.setattr(plain_tensors, "plain_tensors", with_a_large_number)
    with pytest.raises(ModelError, match=r"lm_head\.weight holds numbers up to 1e\+07, which q8_0"):
        export_run(Order(run, "gguf", dtype="q8_0", num_prompts=2), tmp_path / "out")
    with pytest.raises(ModelError, match="use --to gguf or --to llamacpp"):
        export_run(Order(run, "merged", dtype="q8_0", num_prompts=2), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("change", ["rope", "tokenizer", "kind"])
def test_what_was_not_tried_against_llama_cpp_is_refused(make_run, tmp_path, change, save_with):
    run = make_run({"type": "none"}, language=save_with(change))
    with pytest.raises(ModelError, match=r"convert_hf_to_gguf\.py"):
        export_run(Order(run, "gguf", num_prompts=2), tmp_path / "out")
    assert not (tmp_path / "out").exists()

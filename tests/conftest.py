"""What every test shares: no hub, no screen, no unexpected skip where `--allowed-skips` asks."""

import gc
import os
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("MPLBACKEND", "Agg")

import hypothesis
import pytest

from fork_server import Forks
from skip_guard import SkipGuard

collect_ignore = ["reference_code", "slurm"]  # scripts to run by hand

# A test asserts no time: machines are shared.
hypothesis.settings.register_profile("varifocal", deadline=None)
hypothesis.settings.load_profile("varifocal")


def pytest_addoption(parser):
    parser.addoption(
        "--allowed-skips",
        metavar="FILE",
        help="fail when a test is skipped that this file does not name",
    )


def pytest_configure(config):
    allowed = config.getoption("allowed_skips", None)
    if allowed and not hasattr(config, "workerinput"):  # xdist's workers report to one process
        config.pluginmanager.register(SkipGuard.of_file(allowed))


def pytest_collection_modifyitems(items):
    """Start with the studies: the longest tests would run alone at the end, on one worker."""
    items.sort(key=lambda item: item.path.parent.name != "studies")


def pytest_collection_finish(session):
    """Take what is imported and collected out of the garbage collector's sight.

    Every training begins with a full collection, which would go through half a million objects.
    """
    gc.collect()
    gc.freeze()


LLAVA_TEMPLATE = (
    "{% for message in messages %}"
    "{{ {'user': 'USER: ', 'assistant': 'ASSISTANT: '}.get(message['role'], '') }}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "{{ '</s>' if message['role'] == 'assistant' else ' ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT: ' }}{% endif %}"
)


def save_llava(directory, strategy="default", tower="clip", kind="Llava", template=LLAVA_TEMPLATE):
    """Save a random LLaVA of 2 layers with its processor, as the hub has them."""
    import torch
    import transformers as hf

    from tiny import byte_tokenizer

    tokenizer = byte_tokenizer(image_token="<image>")
    tokenizer.chat_template = None  # the processor brings one, or nobody
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 4, "initializer_range": 0.3}
    text = hf.LlamaConfig(
        vocab_size=len(tokenizer) + 3,
        hidden_size=32,
        intermediate_size=48,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **sizes,
    )
    towers = {"clip": hf.CLIPVisionConfig, "siglip": hf.SiglipVisionConfig}
    vision = towers[tower](
        hidden_size=16, intermediate_size=24, image_size=28, patch_size=7, **sizes
    )
    layers = {"Llava": -2, "VipLlava": [-2, -1]}[kind]
    chosen = {"vision_feature_select_strategy": strategy} if kind == "Llava" else {}
    config = getattr(hf, f"{kind}Config")(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=layers,
        **chosen,
    )
    torch.manual_seed(0)
    getattr(hf, f"{kind}ForConditionalGeneration")(config).save_pretrained(directory)
    hf.LlavaProcessor(
        hf.CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}),
        tokenizer,
        patch_size=7,
        vision_feature_select_strategy=strategy,
        chat_template=template,
        num_additional_image_tokens=int(tower == "clip"),
    ).save_pretrained(directory)


@pytest.fixture(autouse=True)
def _images_are_read_strictly(monkeypatch):
    """lmms-eval, once imported, lets Pillow open half an image in the whole process."""
    from PIL import ImageFile

    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", False)


@pytest.fixture
def run(monkeypatch, capsys):
    """Run a command line in this process: `run("plan", "demo")` gives exit code, stdout, stderr."""
    from varifocal import cli

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["varifocal", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capsys.readouterr()
        return ended.value.code, captured.out, captured.err

    return run


@pytest.fixture(scope="session")
def forks(tmp_path_factory):
    """Run a command line in a process of its own that has torch imported: `forks.run([...])`."""
    server = Forks(tmp_path_factory.mktemp("forks"))
    yield server
    server.close()


@pytest.fixture(scope="session")
def make_llava():
    return save_llava


@pytest.fixture(scope="session")
def llava(tmp_path_factory):
    """The directory of a random LLaVA; nobody changes it."""
    directory = tmp_path_factory.mktemp("llava")
    save_llava(directory)
    return directory


QWEN_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "{{ '<|im_start|>system\nBe helpful.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}{% if part['type'] == 'image' %}"
    "{{ '<|vision_start|><|image_pad|><|vision_end|>' }}"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}{{ '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
QWEN_TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")


def save_qwen_vl(directory, kind="Qwen2VL"):
    """Save a random Qwen-VL of 2 layers with tokenizer and image processor, as the hub has them."""
    import torch
    import transformers as hf
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(letters)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = hf.PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=["<|im_start|>", *QWEN_TOKENS],
        chat_template=QWEN_TEMPLATE,
    )
    names = ("vision_start_token_id", "vision_end_token_id", "image_token_id", "video_token_id")
    ids = dict(zip(names, tokenizer.convert_tokens_to_ids(list(QWEN_TOKENS)), strict=True))
    text = {
        "vocab_size": len(tokenizer) + 3,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "initializer_range": 0.3,
        "max_position_embeddings": 512,
        "rope_parameters": {"rope_type": "default", "mrope_section": [2, 1, 1]},
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    own = {
        "Qwen2VL": {"embed_dim": 16, "hidden_size": 32, "mlp_ratio": 2},
        "Qwen2_5_VL": {
            "hidden_size": 16,
            "intermediate_size": 24,
            "out_hidden_size": 32,
            "window_size": 56,
            "fullatt_block_indexes": [1],
        },
    }[kind]
    vision = {"depth": 2, "num_heads": 2, "initializer_range": 0.3, **own}
    config = getattr(hf, f"{kind}Config")(text_config=text, vision_config=vision, **ids)
    torch.manual_seed(0)
    getattr(hf, f"{kind}ForConditionalGeneration")(config).save_pretrained(directory)
    hf.Qwen2VLImageProcessorPil().save_pretrained(directory)
    tokenizer.save_pretrained(directory)


SMOLVLM_TOKENS = ("<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>")
SMOLVLM_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}: "
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ '<image>' }}"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<end_of_utterance>\n"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant: ' }}{% endif %}"
)


def save_smolvlm(directory, kind="SmolVLM"):
    """Save a random SmolVLM, or Idefics3, of 2 layers with its processor, as the hub has them."""
    import torch
    import transformers as hf
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(letters)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = hf.PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="<end_of_utterance>",
        pad_token="<|im_end|>",
        extra_special_tokens=["<|im_start|>", *SMOLVLM_TOKENS],
        chat_template=SMOLVLM_TEMPLATE,
    )
    text = {
        "model_type": "llama",
        "vocab_size": len(tokenizer) + 3,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "initializer_range": 0.3,
        "max_position_embeddings": 512,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 56,
        "patch_size": 7,
        "initializer_range": 0.3,
    }
    image_token_id = tokenizer.convert_tokens_to_ids("<image>")
    config = getattr(hf, f"{kind}Config")(
        text_config=text, vision_config=vision, scale_factor=2, image_token_id=image_token_id
    )
    torch.manual_seed(0)
    getattr(hf, f"{kind}ForConditionalGeneration")(config).save_pretrained(directory)
    sizes = {"size": {"longest_edge": 112}, "max_image_size": {"longest_edge": 56}}
    images = getattr(hf, f"{kind}ImageProcessorPil")(**sizes)
    hf.Idefics3Processor(
        images, tokenizer, image_seq_len=16, chat_template=SMOLVLM_TEMPLATE
    ).save_pretrained(directory)


@pytest.fixture(scope="session", params=["SmolVLM"])
def smolvlm(request, tmp_path_factory):
    """The directory of a random SmolVLM; nobody changes it."""
    directory = tmp_path_factory.mktemp(request.param)
    save_smolvlm(directory, request.param)
    return directory


@pytest.fixture(scope="session")
def make_qwen_vl():
    return save_qwen_vl


@pytest.fixture(scope="session", params=["Qwen2VL", "Qwen2_5_VL"])
def qwen_vl(request, tmp_path_factory):
    """The directory of a random Qwen2-VL, and of a Qwen2.5-VL; nobody changes them."""
    directory = tmp_path_factory.mktemp(request.param)
    save_qwen_vl(directory, request.param)
    return directory

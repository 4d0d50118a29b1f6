"""Small tokenizers with the chat templates of SmolLM2, Llama-2 and others; a small ScienceQA."""

import json
import struct
import zlib

import pytest
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

IMAGE_TOKEN = "<|image|>"

CORPUS = [
    "Question: Which of these magnets attract each other? Options: (A) attract (B) repel",
    "The answer is B. BECAUSE: like poles repel, and unlike poles attract.\n\nTrue or false?",
    "a blue block over a yellow block   the particles in sample B are hotter\n",
]

SMOLLM2 = (
    "{% for message in messages %}"
    "{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a default.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}"
    "{% set lead = '<<SYS>>\n' + messages[0]['content'] + '\n<</SYS>>\n\n' %}"
    "{% set messages = messages[1:] %}{% else %}{% set lead = '' %}{% endif %}"
    "{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + (lead if loop.first else '') + message['content'].strip() }}"
    "{{ ' [/INST]' }}{% else %}{{ ' ' + message['content'].strip() + ' ' + eos_token }}"
    "{% endif %}{% endfor %}"
)
VICUNA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] + ' ' }}"
    "{% set messages = messages[1:] %}{% else %}{{ 'A chat.' + ' ' }}{% endif %}"
    "{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ 'USER: ' + message['content'] + ' ' }}{% else %}"
    "{{ 'ASSISTANT: ' + message['content'] + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
# After the last turn comes one more special token, which is not the end of that turn.
PHI = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] }}"
    "{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
# The prompt ends with a blank, which tokenizers like to put into the next word.
BLANK = (
    "{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ 'Q: ' + message['content'] + '\n' }}{% elif message['role'] == 'assistant' %}"
    "{{ 'A: ' + message['content'] + eos_token + '\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'A: ' }}{% endif %}"
)

TEMPLATES = {
    "smollm2": SMOLLM2,
    "llama2": LLAMA2,
    "vicuna": VICUNA,
    "plain": None,
    "phi": PHI,
    "blank": BLANK,
}
SPECIAL = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", IMAGE_TOKEN]


def byte_level(template, **special):
    """Build a tokenizer like GPT-2's and SmolLM2's: bytes, and merges that cross blanks."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS * 3, trainer)
    return _wrap(tokenizer, template, special)


def metaspace(template, **special):
    """Build a tokenizer like Llama-2's: a blank is set in front of whatever it is given."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=SPECIAL, show_progress=False, max_token_length=8
    )
    tokenizer.train_from_iterator(CORPUS * 3, trainer)
    return _wrap(tokenizer, template, special)


def _wrap(tokenizer, template, special):
    words = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", **special}
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        extra_special_tokens=["<|im_start|>", "<|im_end|>", IMAGE_TOKEN],
        clean_up_tokenization_spaces=False,
        **words,
    )
    if template is not None:
        wrapped.chat_template = template
    return wrapped


@pytest.fixture(scope="session")
def tokenizers():
    """Byte-level tokenizers, one for each chat template."""
    return {name: byte_level(template) for name, template in TEMPLATES.items()}


@pytest.fixture(scope="session")
def spaced_tokenizers():
    """Llama-2's kind of tokenizers, one for each chat template."""
    return {name: metaspace(template) for name, template in TEMPLATES.items()}


def bomb(width, height):
    """Write a PNG whose header claims more pixels than any memory holds."""

    def chunk(kind, body):
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 9)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.fixture(scope="session")
def bomb_png():
    return bomb(100_000, 100_000)


PROBLEMS = {
    "1": {
        "question": "Will the magnets attract?",
        "choices": ["attract", "repel"],
        "answer": 1,
        "hint": "Two magnets lie side by side.",
        "image": "image.png",
        "task": "closed choice",
        "grade": "grade3",
        "subject": "natural science",
        "topic": "physics",
        "category": "Magnets",
        "skill": "magnet pairs",
        "lecture": "Like poles repel.",
        "solution": "N faces N.",
        "caption": "Two magnets, N facing N.",
        "split": "train",
    },
    "2": {
        "question": "Which word is a noun?",
        "choices": ["run", "dog", "blue"],
        "answer": 1,
        "hint": "",
        "image": None,
        "grade": "grade1",
        "subject": "language science",
        "skill": "nouns",
        "lecture": "",
        "solution": "",
    },
    "3": {
        "question": "How hot is it?",
        "choices": ["5 °C", "30 °C"],
        "answer": 0,
        "hint": None,
        "image": "image.png",
        "grade": "grade4",
        "subject": "natural science",
        "skill": "thermometers",
    },
}
SPLITS = {"train": ["1", "2"], "val": ["3"], "test": []}


@pytest.fixture
def scienceqa(tmp_path):
    """Three questions in the official layout, two with an image."""
    from PIL import Image

    for split, pid in (("train", "1"), ("val", "3")):
        folder = tmp_path / "images" / split / pid
        folder.mkdir(parents=True)
        Image.new("RGB", (6, 4), "red").save(folder / "image.png")
    write(tmp_path, PROBLEMS)
    return tmp_path


@pytest.fixture
def rewrite(scienceqa):
    """Change a record and write the file again."""

    def change(pid, **values):
        problems = json.loads((scienceqa / "problems.json").read_text())
        problems[pid] = {
            key: value for key, value in {**problems[pid], **values}.items() if value is not ...
        }
        write(scienceqa, problems)
        return scienceqa

    return change


def write(folder, problems, splits=SPLITS):
    (folder / "problems.json").write_text(json.dumps(problems))
    (folder / "pid_splits.json").write_text(json.dumps(splits))

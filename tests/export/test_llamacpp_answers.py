"""Whole answers about images, in llama.cpp and by the run: the same tokens, and what each is given.

llama.cpp's tower computes in float16 in places, and its projector's GELU is an approximation. So
two tokens that are almost equally likely may change places, after which the texts differ. How near
that is has a bound, and a run with llama.cpp's arithmetic is nearer still.
"""

import PIL.Image
import pytest
import torch
from transformers import LlamaForCausalLM

from languages import byte_level, save_language
from varifocal.assemble import open_run
from varifocal.data.example import Example, Image, Message
from varifocal.exporting.export import export_run
from varifocal.exporting.request import Order
from written import (
    compute_as_llama_cpp,
    first_difference,
    greedy_answers,
    log_probabilities_along,
    piece,
)

pytest.importorskip("gguf")
pytestmark = pytest.mark.slow

MMA = {"type": "mma", "router_temperature": 1.0, "adapt_vision_tower": False}
LORA = {"type": "lora", "adapt_vision_tower": True}
IN_ITS_ORDER = {"type": "mlp2x_gelu", "image_tokens": "llamacpp"}
QUESTION = "Which colour?"
IMAGES, TOKENS = 20, 64


@pytest.fixture(scope="module")
def save_ascii(tmp_path_factory):
    """A language model whose tokens are text alone, and which likes to end its turn."""
    directory = tmp_path_factory.mktemp("ascii") / "lm"
    tokenizer = byte_level(ascii_alone=True)
    save_language(directory, tokenizer=tokenizer)
    model = LlamaForCausalLM.from_pretrained(directory)
    model.lm_head.weight.data[tokenizer.eos_token_id] *= 1.5
    model.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Images of the tower's size."""
    files = []
    for seed in range(IMAGES):
        noise = torch.randint(
            0, 256, (28, 28, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
        )
        files.append(tmp_path_factory.getbasetemp() / f"noise-{seed}.png")
        PIL.Image.fromarray(noise.numpy()).save(files[-1])
    return files


@pytest.mark.parametrize(
    ("tuner", "tower", "connector"),
    [(MMA, "siglip", None), (LORA, "siglip", None), (LORA, "clip", IN_ITS_ORDER)],
)
def test_llama_cpp_writes_about_images_what_the_run_writes(
    make_run, save_ascii, images, tmp_path, ask_llama_cpp, monkeypatch, tuner, tower, connector
):
    run = make_run(
        tuner, tower, connector, language=save_ascii, data={"system_prompt": "Be brief."}
    )
    done = export_run(Order(run, "llamacpp", num_prompts=2), tmp_path / "out")[-1].directory
    _, parts = open_run(run.root)
    job = {"model": str(done / "model.gguf"), "mmproj": str(done / "mmproj.gguf")}
    job |= {"text": prompt(parts.encoder), "images": [str(image) for image in images]}
    (found,) = ask_llama_cpp([job | {"tokens": TOKENS, "sampled": TOKENS}])
    theirs = [Theirs(answer, parts.encoder) for answer in found["answers"]]
    assert len({tuple(answer.pieces) for answer in theirs}) > IMAGES / 2  # it looks at the image
    assert any(answer.ended for answer in theirs)
    same, gap = compare_greedy(parts, images, theirs)
    assert same >= 0.8 * IMAGES
    assert gap < 0.01
    assert log_probability_gap(parts, images, theirs) < 1e-3
    monkeypatch.setenv("VARIFOCAL_CACHE", str(tmp_path / "features"))  # the tower computes anew
    _, parts = open_run(run.root)
    compute_as_llama_cpp(parts)
    same, gap = compare_greedy(parts, images, theirs)
    assert same >= 0.9 * IMAGES
    assert gap < 1e-3
    assert log_probability_gap(parts, images, theirs) < 5e-5


class Theirs:
    """An answer of llama.cpp's in the run's ids.

    Attributes:
        pieces: what it wrote greedily, a text for each token.
        ended: whether it came to its end of turn.
        sampled: the ids of another text, by chance, with its end of turn.
        given: probabilities [steps, V] at each token of that.
    """

    def __init__(self, answer, encoder):
        tokenizer = encoder.tokenizer
        names = [piece(tokenizer, token) for token in range(len(tokenizer))]
        known = {name: token for token, name in enumerate(names)}
        assert len(known) == len(names)
        self.pieces = answer["greedy"]
        self.ended = answer["ended"]
        known[""] = encoder.end_of_turn_id
        self.sampled = [known[step["token"]] for step in answer["steps"]]
        self.given = torch.tensor(
            [[step["next"].get(name, 0.0) for name in names] for step in answer["steps"]]
        )


def prompt(encoder):
    """Write the question as the run asks it, with llama.cpp's placeholder of an image."""
    turns = [
        {"role": "system", "content": encoder.system},
        {"role": "user", "content": encoder.image_token + QUESTION},
    ]
    text = encoder.template.render(turns, add_generation_prompt=True)
    return text.replace(encoder.image_token, "<__media__>")


def asked(images):
    return [Example((Message("user", (Image(path=image), QUESTION)),)) for image in images]


def compare_greedy(parts, images, theirs):
    """Return how many answers are the same, and how far apart two tokens were where one parts."""
    own = greedy_answers(parts, asked(images), TOKENS)
    gaps = [
        first_difference(parts, one, answer.pieces, answer.ended)
        for one, answer in zip(own, theirs, strict=True)
    ]
    return gaps.count(0.0), max(gaps)


def log_probability_gap(parts, images, theirs):
    """Return how far log-probabilities differ along llama.cpp's sampled texts, of themselves."""
    own = log_probabilities_along(parts, asked(images), [answer.sampled for answer in theirs])
    missed = power = 0.0
    for steps, answer in zip(own, theirs, strict=True):
        expected = steps[: len(answer.sampled)].double()
        given = answer.given[:, : expected.shape[1]].double()
        assert torch.allclose(given.sum(-1), torch.ones(len(given)).double(), atol=1e-4)
        likely = given > 1e-6  # below, the numbers of a JSON page are too short
        missed += float((given.log() - expected)[likely].square().sum())
        power += float(expected[likely].square().sum())
    return (missed / power) ** 0.5

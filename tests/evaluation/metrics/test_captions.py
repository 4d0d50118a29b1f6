"""BLEU-4 and CIDEr-D on paper, and against COCO's own scorers where they are installed."""

import math
import random

import pytest

from varifocal.evaluation.metrics.captions import BleuCounts, bleu, bleu_counts, cider, tokenise


def corpus_bleu(captions, references):
    pairs = zip(captions, references, strict=True)
    counts = [bleu_counts(caption, found) for caption, found in pairs]
    lengths = (sum(row.length for row in counts), sum(row.reference_length for row in counts))
    matches = zip(*(row.matches for row in counts), strict=True)
    guesses = zip(*(row.guesses for row in counts), strict=True)
    return bleu(BleuCounts(*lengths, tuple(map(sum, matches)), tuple(map(sum, guesses))))


def test_bleu_on_paper():
    caption = ["the", "cat", "sat", "on", "the", "mat"]
    reference = ["the", "cat", "sat", "on", "a", "mat"]
    # Clipped matches: "the" 1 of 2, cat, sat, on, mat; 2-grams the-cat cat-sat sat-on; 3-grams 2;
    # 4-grams 1. Equal lengths: no penalty.
    expected = (5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** (1 / 4)
    assert corpus_bleu([caption], [[reference]]) == pytest.approx(expected, abs=1e-8)


def test_brevity_takes_the_closest_reference():
    caption = ["a", "b", "c", "d"]
    references = [list("abcde"), list("abcdefgh")]
    # All n-grams match; 4 words against 5: exp(1 - 5/4).
    assert corpus_bleu([caption], [references]) == pytest.approx(math.exp(-1 / 4), abs=1e-8)


def test_bleu_is_of_the_corpus_not_the_mean_of_captions():
    captions = [list("abcd"), list("wxyz")]
    references = [[list("abcd")], [list("mnop")]]
    # Half of the n-grams of every order match: 4/8, 3/6, 2/4, 1/2.
    assert corpus_bleu(captions, references) == pytest.approx(0.5, abs=1e-8)


def test_no_caption_scores_nothing():
    assert corpus_bleu([[]], [[["a", "cat"]]]) == pytest.approx(0.0, abs=1e-6)


def test_cider_on_paper():
    # Two images; no n-gram is in both images' references, so each weighs log 2.
    references = [[["a", "cat"]], [["one", "dog"]]]
    # Image 1: equal texts, cosine 1 for n = 1 and 2, nothing for n = 3 and 4: 10 * 2/4.
    # Image 2: "dog" alone of two words: n = 1: log2^2 / (log2 * sqrt(2) log2) = 1/sqrt 2;
    # lengths in pairs of words 0 and 1: penalty exp(-1/72).
    first, second = cider([["a", "cat"], ["dog"]], references)
    assert first == pytest.approx(5.0, abs=1e-12)
    assert second == pytest.approx(10 * math.exp(-1 / 72) / math.sqrt(2) / 4, abs=1e-12)


def test_cider_clips_a_word_said_too_often():
    references = [[["a", "cat"]], [["one", "dog"]]]
    (score, _) = cider([["cat", "cat"], ["dog"]], references)
    # n = 1: min(2, 1) * 1 / (2 * sqrt 2); "cat cat" is in no reference; equal lengths.
    assert score == pytest.approx(10 * (1 / (2 * math.sqrt(2))) / 4, abs=1e-12)


def test_words_that_all_images_share_weigh_nothing():
    assert cider([["a"], ["a"]], [[["a", "cat"]], [["a", "dog"]]]) == [0.0, 0.0]


# What Stanford's PTBTokenizer 3.4.1 gave for these lines, punctuation left out as COCO's script
# does (Java run by hand; see the module's docstring for what is known to differ).
PTB = [
    ("A man riding a wave.", "a man riding a wave"),
    (
        "A man's t-shirt (red), and he can't surf.",
        "a man 's t-shirt -lrb- red -rrb- and he ca n't surf",
    ),
    (
        "Two dogs -- one black, one brown -- play with a frisbee!",
        "two dogs one black one brown play with a frisbee",
    ),
    (
        "Mr. Smith's dog isn't here; it's at the vet.",
        "mr. smith 's dog is n't here it 's at the vet",
    ),
    (
        "A black-and-white cat sits on a $1,000 chair...",
        "a black-and-white cat sits on a $ 1,000 chair",
    ),
    (
        "The kids' toys are on the table/desk & floor.",
        "the kids toys are on the table/desk & floor",
    ),
    ("A U.S. flag", "a u.s. flag"),
    ("2 hot dogs, 50% eaten.", "2 hot dogs 50 % eaten"),
    (
        "I cannot believe the boy's gonna jump; we'd go.",
        "i can not believe the boy 's gon na jump we 'd go",
    ),
    ('A "wet paint" sign on a park-bench', "a wet paint sign on a park-bench"),
    ("A close-up of a clock at 10:15 , and people .", "a close-up of a clock at 10:15 and people"),
    ("a 2-door fridge", "a 2-door fridge"),
]


@pytest.mark.parametrize(("caption", "words"), PTB)
def test_words_are_those_of_the_official_tokeniser(caption, words):
    assert tokenise(caption) == words.split()


@pytest.mark.slow
def test_scores_are_those_of_cocos_scorers():
    """Runs where pycocoevalcap is installed; it is no dependency (its licence, and Java)."""
    official_bleu = pytest.importorskip("pycocoevalcap.bleu.bleu_scorer").BleuScorer(n=4)
    official_cider = pytest.importorskip("pycocoevalcap.cider.cider_scorer").CiderScorer()
    rng = random.Random(0)
    words = ["a", "the", "dog", "cat", "runs", "on", "grass", "red"]

    def text(longest):
        return [rng.choice(words) for _ in range(longest)]

    captions = [text(rng.randint(0, 9)) for _ in range(12)]
    references = [[text(rng.randint(1, 12)) for _ in range(3)] for _ in captions]
    for caption, found in zip(captions, references, strict=True):
        pair = (" ".join(caption), [" ".join(one) for one in found])
        official_bleu += pair
        official_cider += pair
    assert corpus_bleu(captions, references) == pytest.approx(
        official_bleu.compute_score()[0][3], abs=1e-12
    )
    assert cider(captions, references) == pytest.approx(
        official_cider.compute_score()[1].tolist(), abs=1e-12
    )

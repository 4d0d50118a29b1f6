"""Language science: words, sentences and short texts."""

from __future__ import annotations

from varifocal.data.sciencebook.dice import Dice
from varifocal.data.sciencebook.skill import Question, Skill

NOUNS = (
    *("apple", "river", "teacher", "window", "garden", "doctor", "bridge", "pencil", "kitchen"),
    *("mountain", "brother", "island", "basket", "farmer", "blanket", "city", "hammer", "ladder"),
    *("monkey", "ocean", "pocket", "rabbit", "school", "table", "uncle", "village", "wagon"),
    *("zebra", "candle", "desert", "engine", "forest", "guitar", "hotel", "jacket", "kettle"),
)
VERBS = (
    *("sing", "write", "build", "carry", "listen", "follow", "bring", "choose", "decide", "eat"),
    *("forget", "give", "hear", "invite", "join", "know", "learn", "make", "obey", "prepare"),
    *("read", "send", "teach", "understand", "visit", "wash", "explain", "grow", "hide", "throw"),
    *("arrive", "become", "borrow", "collect", "destroy", "enjoy"),
)
ADJECTIVES = (
    *("happy", "tall", "brave", "quiet", "heavy", "gentle", "angry", "clever", "dirty", "early"),
    *("famous", "hungry", "lazy", "narrow", "polite", "proud", "rough", "silly", "tiny", "ugly"),
    *("wide", "young", "bitter", "careful", "deep", "easy", "fresh", "huge", "lonely", "modern"),
    *("noisy", "pretty", "sad", "soft", "strong", "wet"),
)
PARTS_OF_SPEECH = (
    *((word, "noun") for word in NOUNS),
    *((word, "verb") for word in VERBS),
    *((word, "adjective") for word in ADJECTIVES),
)
ROLES = {
    "noun": "names a person, place or thing",
    "verb": "tells an action",
    "adjective": "describes what something is like",
}


def parts_of_speech(dice: Dice) -> Question:
    """Tell nouns, verbs and adjectives apart."""
    word, answer = dice.own(PARTS_OF_SPEECH)
    asked = dice.choice(("What kind of word is “{}”?", "Which part of speech is the word “{}”?"))
    return Question(
        question=asked.format(word),
        choices=("noun", "verb", "adjective"),
        answer=answer,
        solution=f"The word “{word}” {ROLES[answer]}. A word like this is called {answer}.",
    )


OPPOSITES = (
    *(("hot", "cold"), ("big", "small"), ("fast", "slow"), ("light", "dark"), ("happy", "sad")),
    *(("open", "closed"), ("full", "empty"), ("hard", "soft"), ("old", "young"), ("wet", "dry")),
    *(("strong", "weak"), ("early", "late"), ("loud", "quiet"), ("rich", "poor"), ("near", "far")),
    *(("thick", "thin"), ("heavy", "light in weight"), ("clean", "dirty"), ("high", "low")),
    *(("begin", "end"), ("win", "lose"), ("buy", "sell"), ("push", "pull"), ("give", "take")),
    *(("laugh", "cry"), ("love", "hate"), ("remember", "forget"), ("above", "below")),
    *(("inside", "outside"), ("always", "never"), ("brave", "afraid"), ("smooth", "rough")),
    *(("sharp", "dull"), ("sweet", "sour"), ("wide", "narrow"), ("true", "false")),
    *(("accept", "refuse"), ("arrive", "leave"), ("awake", "asleep"), ("deep", "shallow")),
)


def opposites(dice: Dice) -> Question:
    """Find the word with the opposite meaning."""
    word, answer = dice.own(OPPOSITES)
    others = [second for first, second in OPPOSITES if answer not in (first, second)]
    return Question(
        question=f"Which word means the opposite of “{word}”?",
        choices=(answer, *dice.sample(others, 2)),
        answer=answer,
        solution=f"Antonyms are words with opposite meanings. The opposite of “{word}” is “{answer}”.",
    )


PEOPLE = (
    *("Ana", "Ben", "Carla", "Dan", "Eva", "Finn", "Grace", "Hugo", "Ivy", "Jack", "Kim", "Leo"),
    *("Mia", "Noah", "Olga", "Paul", "Rosa", "Sam", "Tina", "Umar", "Vera", "Will", "Yuki", "Zoe"),
)
THINGS = (
    *("ball", "book", "kite", "cake", "drum", "lamp", "coat", "boat", "flower", "cup", "chair"),
    *("bike", "doll", "map", "rope", "shell", "spoon", "stone", "clock", "hat"),
)


def story(dice: Dice) -> Question:
    """Read who has what, then answer."""
    names = dice.sample(PEOPLE, 3)
    asked = dice.own(THINGS)
    others = dice.sample([thing for thing in THINGS if thing != asked], 2)
    owner = dice.choice(names)
    rest = iter(others)
    held = [(name, asked if name == owner else next(rest)) for name in names]
    verb = dice.choice(("has", "found", "brought", "bought"))
    sentences = " ".join(f"{name} {verb} a {thing}." for name, thing in held)
    return Question(
        question=f"Read the text. Who {verb} a {asked}?",
        choices=tuple(names),
        answer=owner,
        hint=sentences,
        solution=f"Look for the sentence that tells about a {asked}. The name in this sentence is {owner}.",
    )


WORDS = (
    Skill(
        name="parts_of_speech",
        title="Identify nouns, verbs, and adjectives",
        subject="language science",
        topic="grammar",
        category="Parts of speech",
        grades=(2, 6),
        needs="none",
        num_choices=3,
        lecture=(
            "A noun names a person, a place or a thing, like girl, park or spoon. A verb tells an "
            "action, like run or think. An adjective describes a noun, like green or slow."
        ),
        make=parts_of_speech,
    ),
    Skill(
        name="opposites",
        title="Find words with opposite meanings",
        subject="language science",
        topic="vocabulary",
        category="Antonyms",
        grades=(1, 5),
        needs="none",
        num_choices=3,
        lecture="Words with opposite meanings are called antonyms. Up and down are antonyms.",
        make=opposites,
    ),
    Skill(
        name="story",
        title="Find a detail in a text",
        subject="language science",
        topic="reading-comprehension",
        category="Reading for details",
        grades=(1, 4),
        needs="text",
        num_choices=3,
        lecture=(
            "To answer a question about a text, find the words of the question in the text first. The "
            "sentence in which they stand often holds the answer."
        ),
        make=story,
    ),
)

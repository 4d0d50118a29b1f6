"""Language from memory: kinds of words and sentences, meanings and sounds."""

from __future__ import annotations

from varifocal.sciencebook.dice import Dice
from varifocal.sciencebook.reading import PEOPLE
from varifocal.sciencebook.skill import Question, Skill, with_article
from varifocal.sciencebook.vocabulary import (
    ADJECTIVES,
    NOUNS,
    OPPOSITES,
    RHYMES,
    SENTENCES,
    SYNONYMS,
    VERB_FORMS,
    VERBS,
)

ROLES = {
    "noun": "names a person, a place or a thing",
    "verb": "tells an action",
    "adjective": "describes what something is like",
}
PARTS_OF_SPEECH = (
    *((word, "noun") for word in NOUNS),
    *((word, "verb") for word in VERBS),
    *((word, "adjective") for word in ADJECTIVES),
)


def parts_of_speech(dice: Dice) -> Question:
    """A word: noun, verb or adjective?"""
    word, answer = dice.own(PARTS_OF_SPEECH)
    asked = dice.choice(('What kind of word is "{}"?', 'Which part of speech is the word "{}"?'))
    return Question(
        question=asked.format(word),
        choices=tuple(ROLES),
        answer=answer,
        solution=f'The word "{word}" {ROLES[answer]}. So, it is {with_article(answer)}.',
    )


def opposites(dice: Dice) -> Question:
    """A word: which other word means the opposite?"""
    word, answer = dice.own(OPPOSITES)
    others = [second for _, second in OPPOSITES if second != answer]
    return Question(
        question=f'Which word means the opposite of "{word}"?',
        choices=(answer, *dice.sample(others, 2)),
        answer=answer,
        solution=f'Look for the word that is most unlike "{word}". Its opposite is "{answer}".',
    )


def synonyms(dice: Dice) -> Question:
    """A word: which other word means nearly the same?"""
    word, answer = dice.own(SYNONYMS)
    others = [second for _, second in SYNONYMS if second != answer]
    return Question(
        question=f'Which word means nearly the same as "{word}"?',
        choices=(answer, *dice.sample(others, 2)),
        answer=answer,
        solution=(
            f'Try each word in the place of "{word}". The word with nearly the same meaning is '
            f'"{answer}".'
        ),
    )


def rhymes(dice: Dice) -> Question:
    """A word: which other word rhymes with it?"""
    family = dice.own(RHYMES)
    word, answer = dice.sample(family, 2)
    strangers = dice.sample([other for other in RHYMES if other != family], 2)
    return Question(
        question=f'Which word rhymes with "{word}"?',
        choices=(answer, *(dice.choice(stranger) for stranger in strangers)),
        answer=answer,
        solution=(
            f'Say the words aloud and listen to their ends. The word that ends like "{word}" is '
            f'"{answer}".'
        ),
    )


TENSES = ("past tense", "present tense", "future tense")
TIMES = {
    "past tense": "has already happened",
    "present tense": "happens now or often",
    "future tense": "is going to happen",
}


def verb_tense(dice: Dice) -> Question:
    """A sentence: past, present or future?"""
    present, past, base, rest = dice.own(VERB_FORMS)
    answer, name = dice.choice(TENSES), dice.choice(PEOPLE)
    verb = {"past tense": past, "present tense": present, "future tense": f"will {base}"}[answer]
    return Question(
        question=f"Which tense does the sentence use? {name} {verb} {rest}.",
        choices=TENSES,
        answer=answer,
        solution=(
            f'Look at the verb. "{verb}" tells about something that {TIMES[answer]}. It is the '
            f"{answer}."
        ),
    )


KINDS = {
    "a statement": "tells something",
    "a question": "asks something",
    "a command": "tells somebody to do something",
}
SENTENCE_KINDS = tuple(
    (text, kind) for kind, texts in zip(KINDS, SENTENCES, strict=True) for text in texts
)


def sentence_kinds(dice: Dice) -> Question:
    """A sentence without its end mark: statement, question or command?"""
    text, answer = dice.own(SENTENCE_KINDS)
    return Question(
        question=f'The end mark is missing. What kind of sentence is this? "{text}"',
        choices=tuple(KINDS),
        answer=answer,
        solution=f"Read the sentence aloud. It {KINDS[answer]}. So, it is {answer}.",
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
        name="synonyms",
        title="Find words with similar meanings",
        subject="language science",
        topic="vocabulary",
        category="Synonyms",
        grades=(2, 7),
        needs="none",
        num_choices=3,
        lecture=(
            "Words with the same or nearly the same meaning are called synonyms. Road and "
            "street are synonyms."
        ),
        make=synonyms,
    ),
    Skill(
        name="rhymes",
        title="Find words that rhyme",
        subject="language science",
        topic="phonological-awareness",
        category="Rhyming",
        grades=(1, 3),
        needs="none",
        num_choices=3,
        lecture=(
            "Words rhyme when they sound the same from the last stressed vowel to the end, "
            "like moon and spoon."
        ),
        make=rhymes,
    ),
    Skill(
        name="verb_tense",
        title="Is the sentence in the past, present, or future tense?",
        subject="language science",
        topic="verbs",
        category="Verb tense",
        grades=(2, 6),
        needs="none",
        num_choices=3,
        lecture=(
            "Present tense verbs tell what happens now or often. Past tense verbs tell what "
            "already happened; many end in -ed. Future tense verbs tell what is going to "
            "happen and use will."
        ),
        make=verb_tense,
    ),
    Skill(
        name="sentence_kinds",
        title="Is the sentence a statement, a question, or a command?",
        subject="language science",
        topic="punctuation",
        category="Sentences, fragments, and run-ons",
        grades=(1, 5),
        needs="none",
        num_choices=3,
        lecture=(
            "A statement tells something and ends with a period. A question asks something and "
            "ends with a question mark. A command tells somebody to do something; it starts "
            "with a verb."
        ),
        make=sentence_kinds,
    ),
)

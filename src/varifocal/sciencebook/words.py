"""Language from memory: kinds of words and sentences, meanings and sounds."""

from __future__ import annotations

from varifocal.sciencebook.dice import Dice
from varifocal.sciencebook.reading import PEOPLE
from varifocal.sciencebook.skill import Skill, SkillQuestion, with_article

NOUNS = (
    *("apple", "river", "teacher", "window", "garden", "doctor", "bridge", "pencil", "kitchen"),
    *("mountain", "brother", "island", "basket", "farmer", "blanket", "city", "ladder"),
    *("monkey", "ocean", "pocket", "rabbit", "school", "table", "uncle", "village", "wagon"),
    *("zebra", "candle", "desert", "engine", "forest", "guitar", "hotel", "jacket", "kettle"),
    *("lion", "museum", "neighbor", "pillow", "queen", "tiger", "tower"),
)
VERBS = (
    *("sing", "write", "build", "carry", "listen", "follow", "bring", "choose", "decide", "eat"),
    *("forget", "give", "hear", "invite", "join", "know", "learn", "make", "obey", "prepare"),
    *("read", "send", "teach", "understand", "forgive", "sew", "explain", "grow", "hide", "throw"),
    *("arrive", "become", "borrow", "collect", "destroy", "enjoy", "belong", "chew", "describe"),
    *("examine", "freeze", "imagine", "protect", "speak", "swallow"),
)
ADJECTIVES = (
    *("happy", "tall", "brave", "heavy", "gentle", "angry", "clever", "hungry", "early", "bitter"),
    *("famous", "lazy", "polite", "proud", "rough", "silly", "tiny", "ugly", "careful", "lonely"),
    *("wide", "young", "deep", "easy", "fresh", "huge", "modern", "noisy", "pretty", "sad"),
    *(
        "soft",
        "strong",
        "thirsty",
        "tasty",
        "useful",
        "wise",
        "bright",
        "cheap",
        "curious",
        "dusty",
    ),
    *("eager", "foolish", "honest", "friendly", "sharp"),
)
OPPOSITES = (
    *(("hot", "cold"), ("big", "small"), ("fast", "slow"), ("happy", "sad")),
    *(("open", "closed"), ("full", "empty"), ("hard", "soft"), ("old", "young"), ("wet", "dry")),
    *(("strong", "weak"), ("early", "late"), ("loud", "quiet"), ("rich", "poor"), ("near", "far")),
    *(("thick", "thin"), ("clean", "dirty"), ("high", "low"), ("begin", "end"), ("win", "lose")),
    *(("buy", "sell"), ("push", "pull"), ("give", "take"), ("laugh", "cry"), ("love", "hate")),
    *(("remember", "forget"), ("borrow", "lend"), ("inside", "outside"), ("always", "never")),
    *(("brave", "afraid"), ("smooth", "rough"), ("sharp", "blunt"), ("sweet", "sour")),
    *(("wide", "narrow"), ("true", "false"), ("accept", "refuse"), ("arrive", "leave")),
    *(("awake", "asleep"), ("deep", "shallow"), ("safe", "dangerous"), ("same", "different")),
    *(("simple", "complicated"), ("alive", "dead"), ("float", "sink"), ("add", "subtract")),
    *(("question", "answer"), ("day", "night"), ("front", "back"), ("more", "less")),
    *(("polite", "rude"), ("ugly", "beautiful"), ("friend", "enemy"), ("attack", "defend")),
    *(("expand", "shrink"), ("success", "failure"), ("tight", "loose"), ("summer", "winter")),
)
SYNONYMS = (
    *(("big", "large"), ("small", "little"), ("happy", "glad"), ("fast", "quick"), ("sick", "ill")),
    *(
        ("begin", "start"),
        ("finish", "end"),
        ("angry", "mad"),
        ("smart", "clever"),
        ("talk", "speak"),
    ),
    *(("tired", "sleepy"), ("silent", "quiet"), ("scared", "afraid"), ("present", "gift")),
    *(
        ("rock", "stone"),
        ("shop", "store"),
        ("jump", "leap"),
        ("shout", "yell"),
        ("choose", "pick"),
    ),
    *(("hard", "difficult"), ("simple", "easy"), ("correct", "right"), ("rich", "wealthy")),
    *(("brave", "courageous"), ("pretty", "beautiful"), ("strange", "odd"), ("close", "shut")),
    *(("build", "construct"), ("help", "assist"), ("buy", "purchase"), ("forest", "woods")),
    *(("ocean", "sea"), ("journey", "trip"), ("error", "mistake"), ("reply", "answer")),
    *(("chilly", "cold"), ("taxi", "cab"), ("couch", "sofa"), ("ancient", "old")),
    *(
        ("repair", "fix"),
        ("hurry", "rush"),
        ("bucket", "pail"),
        ("dwell", "live"),
        ("author", "writer"),
    ),
    *(
        ("woman", "lady"),
        ("child", "kid"),
        ("path", "trail"),
        ("whole", "entire"),
        ("vanish", "disappear"),
    ),
    *(("evil", "wicked"), ("allow", "permit"), ("argue", "quarrel"), ("famous", "well-known")),
)
RHYMES = (
    *(
        ("cat", "hat", "bat"),
        ("cake", "lake", "snake"),
        ("tree", "bee", "key"),
        ("dog", "fog", "log"),
    ),
    *(("light", "night", "kite"), ("house", "mouse", "blouse"), ("ring", "king", "wing")),
    *(
        ("goat", "boat", "coat"),
        ("sun", "bun", "run"),
        ("star", "car", "jar"),
        ("ball", "wall", "tall"),
    ),
    *(("rain", "train", "chain"), ("nose", "rose", "hose"), ("bell", "shell", "well")),
    *(
        ("pin", "fin", "chin"),
        ("clock", "sock", "rock"),
        ("bug", "mug", "rug"),
        ("pan", "fan", "van"),
    ),
    *(("moon", "spoon", "balloon"), ("bread", "bed", "sled"), ("bear", "chair", "pear")),
    *(("corn", "horn", "thorn"), ("drum", "plum", "thumb"), ("gate", "plate", "skate")),
    *(("hill", "mill", "pill"), ("jeep", "sheep", "sleep"), ("duck", "truck", "luck")),
    *(("lamp", "stamp", "camp"), ("nest", "vest", "west"), ("pie", "sky", "fly")),
    *(("pond", "bond", "blond"), ("sail", "tail", "nail"), ("tent", "cent", "went")),
    *(("flower", "tower", "shower"), ("hand", "sand", "band"), ("ship", "lip", "trip")),
    *(("cheese", "knees", "peas"), ("cold", "gold", "old"), ("food", "mood", "rude")),
    *(("jelly", "belly", "smelly"),),
)
VERB_FORMS = (
    ("walks", "walked", "walk", "to the park"),
    ("plays", "played", "play", "in the yard"),
    ("eats", "ate", "eat", "a red apple"),
    ("writes", "wrote", "write", "a long letter"),
    ("sings", "sang", "sing", "on the stage"),
    ("visits", "visited", "visit", "an old castle"),
    ("drinks", "drank", "drink", "a cup of tea"),
    ("builds", "built", "build", "a small boat"),
    ("helps", "helped", "help", "a neighbor"),
    ("paints", "painted", "paint", "the kitchen wall"),
    ("swims", "swam", "swim", "across the lake"),
    ("sells", "sold", "sell", "fresh bread"),
    ("catches", "caught", "catch", "a big fish"),
    ("cleans", "cleaned", "clean", "the windows"),
    ("draws", "drew", "draw", "a funny face"),
    ("drives", "drove", "drive", "a yellow bus"),
    ("feeds", "fed", "feed", "the hungry birds"),
    ("finds", "found", "find", "a silver coin"),
    ("grows", "grew", "grow", "tall sunflowers"),
    ("jumps", "jumped", "jump", "over the fence"),
    ("learns", "learned", "learn", "a new dance"),
    ("makes", "made", "make", "a paper crown"),
    ("opens", "opened", "open", "the heavy door"),
    ("picks", "picked", "pick", "ripe cherries"),
    ("rides", "rode", "ride", "a brown horse"),
    ("runs", "ran", "run", "along the beach"),
    ("sends", "sent", "send", "a postcard"),
    ("teaches", "taught", "teach", "the little ones"),
    ("throws", "threw", "throw", "the ball"),
    ("washes", "washed", "wash", "the muddy dog"),
    ("watches", "watched", "watch", "the night sky"),
    ("wears", "wore", "wear", "a green scarf"),
    ("breaks", "broke", "break", "the thin ice"),
    ("carries", "carried", "carry", "a full basket"),
    ("cooks", "cooked", "cook", "a spicy soup"),
    ("digs", "dug", "dig", "a deep hole"),
)
SENTENCES = (
    (
        *("The train leaves at noon", "My sister plays the violin", "Bees make honey"),
        *("The lake is frozen in winter", "We painted the fence yesterday", "Owls hunt at night"),
        *("The baker gets up early", "There are six eggs in the box", "Our cat sleeps all day"),
        *("The new bridge is very long", "He forgot his umbrella", "Snow covered the hills"),
        *("The museum opens at nine", "They live near the sea", "This soup is too salty"),
    ),
    (
        *("Where did you put the keys", "How old is your grandmother", "Why is the sky blue"),
        *("Who baked this cake", "When does the movie start", "Do you like green tea"),
        *("Can penguins fly", "What is the name of that bird", "Have you seen my left shoe"),
        *("Is the water warm enough", "Which bus goes downtown", "Did anyone call today"),
        *("How far is the moon", "Are there any plums left", "Whose coat is this"),
    ),
    (
        *("Close the door quietly", "Wash your hands before dinner", "Turn left at the corner"),
        *("Please pass the salt", "Do not feed the bears", "Put the books on the shelf"),
        *("Stir the sauce slowly", "Wait for the green light", "Bring me a glass of water"),
        *("Finish your homework first", "Never touch a hot stove", "Take off your muddy boots"),
        *("Look both ways before crossing", "Stay close to the guide", "Fold the paper in half"),
    ),
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


def parts_of_speech(dice: Dice) -> SkillQuestion:
    """A word: noun, verb or adjective?"""
    word, answer = dice.own(PARTS_OF_SPEECH)
    asked = dice.choice(('What kind of word is "{}"?', 'Which part of speech is the word "{}"?'))
    return SkillQuestion(
        question=asked.format(word),
        choices=tuple(ROLES),
        answer=answer,
        solution=f'The word "{word}" {ROLES[answer]}. So, it is {with_article(answer)}.',
    )


def opposites(dice: Dice) -> SkillQuestion:
    """A word: which other word means the opposite?"""
    word, answer = dice.own(OPPOSITES)
    others = [second for _, second in OPPOSITES if second != answer]
    return SkillQuestion(
        question=f'Which word means the opposite of "{word}"?',
        choices=(answer, *dice.sample(others, 2)),
        answer=answer,
        solution=f'Look for the word that is most unlike "{word}". Its opposite is "{answer}".',
    )


def synonyms(dice: Dice) -> SkillQuestion:
    """A word: which other word means nearly the same?"""
    word, answer = dice.own(SYNONYMS)
    others = [second for _, second in SYNONYMS if second != answer]
    return SkillQuestion(
        question=f'Which word means nearly the same as "{word}"?',
        choices=(answer, *dice.sample(others, 2)),
        answer=answer,
        solution=(
            f'Try each word in the place of "{word}". The word with nearly the same meaning is '
            f'"{answer}".'
        ),
    )


def rhymes(dice: Dice) -> SkillQuestion:
    """A word: which other word rhymes with it?"""
    family = dice.own(RHYMES)
    word, answer = dice.sample(family, 2)
    strangers = dice.sample([other for other in RHYMES if other != family], 2)
    return SkillQuestion(
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


def verb_tense(dice: Dice) -> SkillQuestion:
    """A sentence: past, present or future?"""
    present, past, base, rest = dice.own(VERB_FORMS)
    answer, name = dice.choice(TENSES), dice.choice(PEOPLE)
    verb = {"past tense": past, "present tense": present, "future tense": f"will {base}"}[answer]
    return SkillQuestion(
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


def sentence_kinds(dice: Dice) -> SkillQuestion:
    """A sentence without its end mark: statement, question or command?"""
    text, answer = dice.own(SENTENCE_KINDS)
    return SkillQuestion(
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

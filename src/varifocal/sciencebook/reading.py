"""Language from short texts: details, order of events, meanings in context."""

from __future__ import annotations

from varifocal.sciencebook.dice import Dice
from varifocal.sciencebook.skill import Skill, SkillQuestion, capitalised, with_article

PEOPLE = (
    *("Ana", "Ben", "Carla", "Dan", "Eva", "Finn", "Grace", "Hugo", "Ivy", "Jack", "Kim", "Leo"),
    *("Mia", "Noah", "Olga", "Paul", "Rosa", "Sam", "Tina", "Umar", "Vera", "Will", "Yuki", "Zoe"),
)
THINGS = (
    *("ball", "book", "kite", "cake", "drum", "lamp", "coat", "boat", "flower", "cup", "chair"),
    *("bike", "doll", "map", "rope", "shell", "spoon", "stone", "clock", "hat", "orange", "egg"),
    *("pen", "bell", "coin", "mask", "bag", "apple", "scarf", "whistle"),
)


def story(dice: Dice) -> SkillQuestion:
    """Three people with a thing each: who has the one asked for?"""
    names = dice.sample(PEOPLE, 3)
    asked = dice.own(THINGS)
    others = dice.sample([thing for thing in THINGS if thing != asked], 2)
    owner = dice.choice(names)
    rest = iter(others)
    held = [(name, asked if name == owner else next(rest)) for name in names]
    verb = dice.choice(("has", "found", "brought", "bought"))
    return SkillQuestion(
        question=f"Read the text. Who {verb} {with_article(asked)}?",
        choices=tuple(names),
        answer=owner,
        hint=" ".join(f"{name} {verb} {with_article(thing)}." for name, thing in held),
        solution=(
            f"Look for the sentence that tells about {with_article(asked)}. "
            f"The name in this sentence is {owner}."
        ),
    )


EVENTS = (
    *("fed the cat", "washed the dishes", "wrote a letter", "watered the plants", "made tea"),
    *("cleaned the windows", "called a friend", "baked bread", "swept the floor", "read a book"),
    *("painted a fence", "went for a walk", "fixed a bike", "picked apples", "bought milk"),
    *("took a nap", "drew a picture", "played a song", "fetched the mail", "peeled potatoes"),
    *("made the bed", "built a tower", "brushed the dog", "sang a song"),
)
POSITIONS = ("first", "second", "last")


def order_of_events(dice: Dice) -> SkillQuestion:
    """Three events in a row: what came first, second or last?"""
    name, answer = dice.choice(PEOPLE), dice.own(EVENTS)
    place = dice.integer(0, 2)
    events = dice.sample([event for event in EVENTS if event != answer], 2)
    events.insert(place, answer)
    first, second, last = events
    hint = f"In the morning {name} {first}. Then {name} {second}. In the evening {name} {last}."
    return SkillQuestion(
        question=f"Read the text. What did {name} do {POSITIONS[place]}?",
        choices=tuple(events),
        answer=answer,
        hint=hint,
        solution=(
            "Words like morning, then and evening tell the order. Put the events in a row and "
            f"count. {capitalised(POSITIONS[place])}, {name} {answer}."
        ),
    )


READING = (
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
            "To answer a question about a text, find the words of the question in the text "
            "first. The sentence in which they stand often holds the answer."
        ),
        make=story,
    ),
    Skill(
        name="order_of_events",
        title="Put events in order",
        subject="language science",
        topic="reading-comprehension",
        category="Text structure",
        grades=(2, 6),
        needs="text",
        num_choices=3,
        lecture=(
            "Writers use words like first, then, next and last to show the order of events. "
            "Times of the day tell the order, too."
        ),
        make=order_of_events,
    ),
)

"""Science from words: animals, units, changes, climate, heredity, motion and experiments."""

from __future__ import annotations

from varifocal.sciencebook.dice import Dice
from varifocal.sciencebook.facts import (
    ANIMALS,
    CHANGES,
    CLIMATES,
    EXPERIMENTS,
    MEASURED,
    PLACES,
    TRAITS,
    TRAVELLERS,
    WEATHERS,
)
from varifocal.sciencebook.reading import PEOPLE
from varifocal.sciencebook.skill import Skill, SkillQuestion, capitalised, with_article

GROUPS = {
    "mammal": "has hair and feeds its young milk",
    "bird": "has feathers, wings and a beak",
    "fish": "lives in water and breathes with gills",
    "insect": "has six legs and a body of three parts",
    "reptile": "has dry skin with scales",
}


def animal_groups(dice: Dice) -> SkillQuestion:
    """An animal: to which group does it belong?"""
    animal, group = dice.own(ANIMALS)
    others = dice.sample([other for other in GROUPS if other != group], 2)
    asked = dice.choice(("What kind of animal is {}?", "To which group of animals does {} belong?"))
    return SkillQuestion(
        question=asked.format(with_article(animal)),
        choices=(group, *others),
        answer=group,
        solution=(
            f"{capitalised(with_article(animal))} {GROUPS[group]}. So, it is {with_article(group)}."
        ),
    )


UNITS = ("meters", "kilometers", "grams", "kilograms", "liters", "hours", "seconds", "degrees")
QUANTITIES = {
    "meters": "length",
    "kilometers": "length",
    "grams": "mass",
    "kilograms": "mass",
    "liters": "volume",
    "hours": "time",
    "seconds": "time",
    "degrees": "temperature",
}


def units(dice: Dice) -> SkillQuestion:
    """Something to measure: in which unit?"""
    thing, unit = dice.own(MEASURED)
    others = [other for other in UNITS if QUANTITIES[other] != QUANTITIES[unit]]
    return SkillQuestion(
        question=f"Which unit is best to measure {thing}?",
        choices=(unit, *dice.sample(others, 2)),
        answer=unit,
        solution=(
            f"First decide what is measured: {thing} is a kind of {QUANTITIES[unit]}. "
            f"A good unit for it is {unit}."
        ),
    )


KINDS_OF_CHANGE = {
    "physical change": "The material stays the same and only looks different",
    "chemical change": "A new kind of matter forms",
}


def changes(dice: Dice) -> SkillQuestion:
    """A change of matter: physical or chemical?"""
    event, answer = dice.own(CHANGES)
    asked = dice.choice(("What kind of change is {}?", "What kind of change happens here: {}?"))
    return SkillQuestion(
        question=asked.format(event),
        choices=tuple(KINDS_OF_CHANGE),
        answer=answer,
        solution=(
            f"Ask whether a new kind of matter forms. {KINDS_OF_CHANGE[answer]}. It is a {answer}."
        ),
    )


def weather_or_climate(dice: Dice) -> SkillQuestion:
    """A passage on a place: weather or climate?"""
    place, answer = dice.own(PLACES), dice.choice(("weather", "climate"))
    sentence = dice.choice(WEATHERS if answer == "weather" else CLIMATES)
    reason = "one certain time" if answer == "weather" else "many years"
    return SkillQuestion(
        question="Read the text. Does it describe the weather or the climate?",
        choices=("weather", "climate"),
        answer=answer,
        hint=sentence.format(place=place, number=dice.integer(4, 30)),
        solution=(
            f"Weather is the state of the air at one time, climate is its pattern over many years. "
            f"The text on {place} tells about {reason}. So, it describes the {answer}."
        ),
    )


def traits(dice: Dice) -> SkillQuestion:
    """A person's trait and where it came from: inherited or acquired?"""
    name, (subject, ways) = dice.choice(PEOPLE), dice.own(TRAITS)
    answer = dice.choice(("inherited", "acquired"))
    reason = "was passed on by the parents" if answer == "inherited" else "came about in life"
    return SkillQuestion(
        question=f"Read the text. Is the trait of {name} inherited or acquired?",
        choices=("inherited", "acquired"),
        answer=answer,
        hint=f"{name} {subject}. {capitalised(ways[answer == 'acquired'].format(name=name))}.",
        solution=f"Find out where the trait comes from. It {reason}. So, it is {answer}.",
    )


def speeds(dice: Dice) -> SkillQuestion:
    """A small table of distances: who was fastest?"""
    answer = dice.own(TRAVELLERS)
    others = dice.sample([other for other in TRAVELLERS if other != answer], 2)
    distances = sorted(dice.sample(range(12, 96), 3), reverse=True)
    time = dice.choice(("one minute", "two minutes", "half a minute"))
    rows = dice.shuffled(list(zip([answer, *others], distances, strict=True)))
    table = "\n".join(f"{capitalised(thing)} | {distance} meters" for thing, distance in rows)
    return SkillQuestion(
        question="Look at the table. Which of them moved the fastest?",
        choices=(answer, *others),
        answer=answer,
        hint=f"Distance moved in {time}:\n{table}",
        solution=(
            "All moved for the same time, so the one that went the longest distance was the "
            f"fastest. The longest distance is {distances[0]} meters. The fastest was "
            f"{answer}."
        ),
    )


def experiments(dice: Dice) -> SkillQuestion:
    """An experiment: what was changed on purpose?"""
    plan, changed, constant, measured = dice.own(EXPERIMENTS)
    name = dice.choice(PEOPLE)
    return SkillQuestion(
        question=f"Read the text. What did {name} change on purpose in this experiment?",
        choices=(changed, constant, measured),
        answer=changed,
        hint=plan.format(name=name),
        solution=(
            f"Find what is different between the groups. {capitalised(constant)} was the same for "
            f"all, and {measured} was measured at the end. What {name} changed was {changed}."
        ),
    )


SCIENCE = (
    Skill(
        name="animal_groups",
        title="Identify mammals, birds, fish, insects, and reptiles",
        subject="natural science",
        topic="biology",
        category="Classification",
        grades=(2, 6),
        needs="none",
        num_choices=3,
        lecture=(
            "Scientists sort animals into groups with common traits. Mammals have hair and "
            "feed milk to their young. Birds have feathers, fish have fins and gills, reptiles "
            "have dry skin with scales, and insects have six legs."
        ),
        make=animal_groups,
    ),
    Skill(
        name="units",
        title="Choose metric units",
        subject="natural science",
        topic="units-and-measurement",
        category="Units and measurement",
        grades=(3, 8),
        needs="none",
        num_choices=3,
        lecture=(
            "Every measurement needs a unit that fits. Length is measured in meters or "
            "kilometers, mass in grams or kilograms, volume in liters, time in seconds or "
            "hours, and temperature in degrees."
        ),
        make=units,
    ),
    Skill(
        name="changes",
        title="Identify physical and chemical changes",
        subject="natural science",
        topic="chemistry",
        category="Physical and chemical change",
        grades=(3, 9),
        needs="none",
        num_choices=2,
        lecture=(
            "In a physical change the kind of matter stays the same: only its shape, size or state "
            "changes. In a chemical change a new kind of matter forms, as when wood burns to ash."
        ),
        make=changes,
    ),
    Skill(
        name="weather_or_climate",
        title="What's the difference between weather and climate?",
        subject="natural science",
        topic="earth-science",
        category="Weather and climate",
        grades=(3, 8),
        needs="text",
        num_choices=2,
        lecture=(
            "Weather is what the air is like at a certain place and time. It can change quickly. "
            "Climate is the pattern of weather in a place over many years."
        ),
        make=weather_or_climate,
    ),
    Skill(
        name="traits",
        title="Identify inherited and acquired traits",
        subject="natural science",
        topic="biology",
        category="Genes to traits",
        grades=(3, 9),
        needs="text",
        num_choices=2,
        lecture=(
            "Living things get some traits from their parents through genes: these are "
            "inherited. Other traits come during life, from learning or from the surroundings: "
            "these are acquired."
        ),
        make=traits,
    ),
    Skill(
        name="speeds",
        title="Compare the speeds of moving objects",
        subject="natural science",
        topic="physics",
        category="Force and motion",
        grades=(4, 9),
        needs="text",
        num_choices=3,
        lecture=(
            "Speed tells how far something moves in a certain time. If two objects move for "
            "the same time, the one that goes farther is faster."
        ),
        make=speeds,
    ),
    Skill(
        name="experiments",
        title="Identify the variable of an experiment",
        subject="natural science",
        topic="science-and-engineering-practices",
        category="Designing experiments",
        grades=(5, 12),
        needs="text",
        num_choices=3,
        lecture=(
            "In a fair experiment only one thing is changed on purpose: the independent "
            "variable. What is measured at the end is the dependent variable. Everything else "
            "is kept the same."
        ),
        make=experiments,
    ),
)

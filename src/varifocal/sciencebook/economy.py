"""Living together, from words: goods and services, supply and demand, costs of a choice, votes."""

from __future__ import annotations

from varifocal.sciencebook.dice import Dice
from varifocal.sciencebook.reading import PEOPLE
from varifocal.sciencebook.skill import Skill, SkillQuestion

GOODS = (
    *(
        "a bicycle",
        "a loaf of bread",
        "a pair of shoes",
        "a guitar",
        "a wooden table",
        "a winter coat",
    ),
    *(
        "a basket of apples",
        "a toy train",
        "a new phone",
        "a jar of honey",
        "a school bag",
        "a lamp",
    ),
    *("a box of crayons", "a tennis ball", "a kitchen knife", "a bottle of milk", "a straw hat"),
    *("a sack of rice", "a wool blanket", "a garden chair", "a bar of soap", "a cooking pot"),
)
SERVICES = (
    *("a haircut", "a bus ride", "a piano lesson", "a visit to the dentist", "a taxi trip"),
    *("fixing a roof", "delivering letters", "cleaning windows", "teaching children to swim"),
    *("walking a neighbor's dog", "painting a house", "repairing a car", "cutting the grass"),
    *("singing at a wedding", "caring for a sick cat", "guiding visitors through a museum"),
    *("washing a truck", "putting out a fire", "babysitting", "tuning a piano", "mending a fence"),
    *("a flight to another city",),
)
TRADES = (*((good, "a good") for good in GOODS), *((service, "a service") for service in SERVICES))


def goods_or_services(dice: Dice) -> SkillQuestion:
    """Something that is paid for: a good or a service?"""
    thing, answer = dice.own(TRADES)
    reason = (
        "a thing that can be touched" if answer == "a good" else "work that is done for somebody"
    )
    asked = dice.choice(
        ("Is {} a good or a service?", "{} can be paid for. Is it a good or a service?")
    )
    question = asked.format(thing)
    return SkillQuestion(
        question=question[0].upper() + question[1:],
        choices=("a good", "a service"),
        answer=answer,
        solution=(
            f"Ask whether you can touch it. {thing[0].upper()}{thing[1:]} is {reason}, so it is "
            f"{answer}."
        ),
    )


WARES = (
    *("umbrellas", "pumpkins", "sandwiches", "tickets", "tomatoes", "lemons", "candles", "kites"),
    *("baskets", "scarves", "muffins", "balloons", "plants", "mugs", "puzzles", "postcards"),
    *(
        "blankets",
        "bracelets",
        "cookies",
        "paintings",
        "notebooks",
        "sunglasses",
        "chairs",
        "lanterns",
    ),
)
MARKETS = {
    "a shortage": "Buyers want more than there is for sale",
    "a surplus": "There is more for sale than buyers want",
}


def supply_and_demand(dice: Dice) -> SkillQuestion:
    """A market told in numbers: a shortage or a surplus?"""
    ware, answer = dice.own(WARES), dice.choice(tuple(MARKETS))
    small = dice.integer(2, 9) * 5
    large = small + dice.integer(3, 10) * 5
    supply, demand = (small, large) if answer == "a shortage" else (large, small)
    seller = dice.choice(PEOPLE)
    sentences = [
        f"{seller} has {supply} {ware} to sell.",
        f"People want to buy {demand} {ware} at this price.",
    ]
    return SkillQuestion(
        question=f"Read the text. Is there a shortage or a surplus of {ware}?",
        choices=tuple(MARKETS),
        answer=answer,
        hint=" ".join(dice.shuffled(sentences)),
        solution=(
            f"Compare the numbers: {supply} are for sale and {demand} are wanted. "
            f"{MARKETS[answer]}. So, there is {answer}."
        ),
    )


PASTIMES = (
    *("swimming", "reading", "baking a cake", "playing chess", "riding a bike", "watching a film"),
    *("visiting a museum", "planting flowers", "going fishing", "painting", "playing soccer"),
    *("building a model", "flying a kite", "hiking", "sewing", "playing the drums", "camping"),
    *("learning to dance", "making pizza", "ice skating"),
)


def given_up(dice: Dice) -> SkillQuestion:
    """Somebody chooses one of two pastimes: what is given up?"""
    name, lost = dice.choice(PEOPLE), dice.own(PASTIMES)
    won, other = dice.sample([pastime for pastime in PASTIMES if pastime != lost], 2)
    first, second = dice.shuffled([won, lost])
    return SkillQuestion(
        question=f"Read the text. What does {name} give up?",
        choices=(won, lost, other),
        answer=lost,
        hint=f"{name} has time for {first} or for {second}, but not for both. {name} picks {won}.",
        solution=(
            f"{name} has time for only one of two things: {first} or {second}. Look for the one "
            f"that {name} does not pick. What {name} gives up is {lost}."
        ),
    )


PROJECTS = (
    *("a playground", "a library", "a bridge", "a swimming pool", "a bus line", "a market hall"),
    *("a school garden", "a bike path", "a fountain", "a theater", "a skate park", "a dog park"),
    *("a picnic area", "a clock tower", "a sports field", "a museum"),
)


def majority(dice: Dice) -> SkillQuestion:
    """Votes told in numbers: which plan wins?"""
    answer = dice.own(PROJECTS)
    others = dice.sample([project for project in PROJECTS if project != answer], 2)
    numbers = sorted(dice.sample(range(11, 90), 3), reverse=True)
    tally = dice.shuffled(list(zip([answer, *others], numbers, strict=True)))
    counted = ", ".join(f"{number} votes for {project}" for project, number in tally)
    return SkillQuestion(
        question="Read the text. What does the town build if the most votes win?",
        choices=(answer, *others),
        answer=answer,
        hint=f"The people of a town vote. There are {counted}.",
        solution=(
            f"Compare the numbers of votes. The largest of them is {numbers[0]}. "
            f"The plan with the most votes is {answer}."
        ),
    )


ECONOMY = (
    Skill(
        name="goods_or_services",
        title="Goods and services",
        subject="social science",
        topic="economics",
        category="Basic economic principles",
        grades=(1, 4),
        needs="none",
        num_choices=2,
        lecture=(
            "People buy goods and services. A good is a thing that you can touch and hold, "
            "like a pen. A service is a job that someone does for you, like serving food."
        ),
        make=goods_or_services,
    ),
    Skill(
        name="supply_and_demand",
        title="Identify shortage and surplus",
        subject="social science",
        topic="economics",
        category="Supply and demand",
        grades=(6, 12),
        needs="text",
        num_choices=2,
        lecture=(
            "Supply is how much sellers offer, and demand is how much buyers want. A shortage "
            "is when the demand is larger than the supply. A surplus is when the supply is "
            "larger than the demand."
        ),
        make=supply_and_demand,
    ),
    Skill(
        name="given_up",
        title="Costs of a choice",
        subject="social science",
        topic="economics",
        category="Basic economic principles",
        grades=(2, 6),
        needs="text",
        num_choices=3,
        lecture=(
            "Everyone has to make choices. When you choose one thing, you often cannot have "
            "the other. What you give up is the cost of your choice."
        ),
        make=given_up,
    ),
    Skill(
        name="majority",
        title="Decide by majority",
        subject="social science",
        topic="civics",
        category="Government",
        grades=(3, 8),
        needs="text",
        num_choices=3,
        lecture=(
            "In a vote, every person may choose one plan. The votes for each plan are counted. "
            "The plan with the most votes wins."
        ),
        make=majority,
    ),
)

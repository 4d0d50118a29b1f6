"""Countries from memory: capitals and continents."""

from __future__ import annotations

from varifocal.sciencebook.dice import Dice
from varifocal.sciencebook.skill import Skill, SkillQuestion

COUNTRIES = (
    ("France", "Paris", "Europe"),
    ("Germany", "Berlin", "Europe"),
    ("Italy", "Rome", "Europe"),
    ("Spain", "Madrid", "Europe"),
    ("Portugal", "Lisbon", "Europe"),
    ("Greece", "Athens", "Europe"),
    ("Poland", "Warsaw", "Europe"),
    ("Austria", "Vienna", "Europe"),
    ("Norway", "Oslo", "Europe"),
    ("Sweden", "Stockholm", "Europe"),
    ("Finland", "Helsinki", "Europe"),
    ("Denmark", "Copenhagen", "Europe"),
    ("Ireland", "Dublin", "Europe"),
    ("Hungary", "Budapest", "Europe"),
    ("Belgium", "Brussels", "Europe"),
    ("Ukraine", "Kyiv", "Europe"),
    ("Romania", "Bucharest", "Europe"),
    ("Bulgaria", "Sofia", "Europe"),
    ("Egypt", "Cairo", "Africa"),
    ("Kenya", "Nairobi", "Africa"),
    ("Ethiopia", "Addis Ababa", "Africa"),
    ("Ghana", "Accra", "Africa"),
    ("Morocco", "Rabat", "Africa"),
    ("Senegal", "Dakar", "Africa"),
    ("Uganda", "Kampala", "Africa"),
    ("Zambia", "Lusaka", "Africa"),
    ("Angola", "Luanda", "Africa"),
    ("Namibia", "Windhoek", "Africa"),
    ("Japan", "Tokyo", "Asia"),
    ("China", "Beijing", "Asia"),
    ("India", "New Delhi", "Asia"),
    ("Thailand", "Bangkok", "Asia"),
    ("Vietnam", "Hanoi", "Asia"),
    ("South Korea", "Seoul", "Asia"),
    ("Iran", "Tehran", "Asia"),
    ("Iraq", "Baghdad", "Asia"),
    ("Nepal", "Kathmandu", "Asia"),
    ("Mongolia", "Ulaanbaatar", "Asia"),
    ("Pakistan", "Islamabad", "Asia"),
    ("the Philippines", "Manila", "Asia"),
    ("Canada", "Ottawa", "North America"),
    ("the United States", "Washington", "North America"),
    ("Mexico", "Mexico City", "North America"),
    ("Cuba", "Havana", "North America"),
    ("Jamaica", "Kingston", "North America"),
    ("Costa Rica", "San José", "North America"),
    ("Honduras", "Tegucigalpa", "North America"),
    ("Peru", "Lima", "South America"),
    ("Chile", "Santiago", "South America"),
    ("Brazil", "Brasília", "South America"),
    ("Argentina", "Buenos Aires", "South America"),
    ("Colombia", "Bogotá", "South America"),
    ("Venezuela", "Caracas", "South America"),
    ("Uruguay", "Montevideo", "South America"),
    ("Ecuador", "Quito", "South America"),
)
CONTINENTS = ("Africa", "Asia", "Europe", "North America", "South America")


def capitals(dice: Dice) -> SkillQuestion:
    """A country: what is its capital?"""
    country, city, _ = dice.own(COUNTRIES)
    others = [capital for _, capital, _ in COUNTRIES if capital != city]
    asked = dice.choice(("What is the capital of {}?", "Which city is the capital of {}?"))
    return SkillQuestion(
        question=asked.format(country),
        choices=(city, *dice.sample(others, 3)),
        answer=city,
        solution=(
            f"The capital is the city where the government of {country} works. "
            f"The capital of {country} is {city}."
        ),
    )


def continents(dice: Dice) -> SkillQuestion:
    """A country: on which continent does it lie?"""
    country, city, continent = dice.own(COUNTRIES)
    others = [other for other in CONTINENTS if other != continent]
    asked = dice.choice(
        ("On which continent is {}?", "{} is a country. On which continent does it lie?")
    )
    question = asked.format(country)
    return SkillQuestion(
        question=question[0].upper() + question[1:],
        choices=(continent, *dice.sample(others, 2)),
        answer=continent,
        solution=f"Find {country} with its capital {city} on a world map. It lies in {continent}.",
    )


COUNTRY_SKILLS = (
    Skill(
        name="capitals",
        title="Name the capital of a country",
        subject="social science",
        topic="geography",
        category="World geography",
        grades=(5, 10),
        needs="none",
        num_choices=4,
        lecture=(
            "The capital of a country is the city where its government works. It is often, but not "
            "always, the largest city of the country."
        ),
        make=capitals,
    ),
    Skill(
        name="continents",
        title="Find a country's continent",
        subject="social science",
        topic="geography",
        category="World geography",
        grades=(3, 8),
        needs="none",
        num_choices=3,
        lecture=(
            "A continent is one of the major land masses on Earth. Most people count seven of "
            "them: Africa, Antarctica, Asia, Australia, Europe, North America and South "
            "America."
        ),
        make=continents,
    ),
)

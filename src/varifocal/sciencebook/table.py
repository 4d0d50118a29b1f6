"""The table of skills, and how one is found in it."""

from __future__ import annotations

from collections.abc import Sequence

from varifocal.errors import DataError, nearest
from varifocal.sciencebook.counting import COUNTING
from varifocal.sciencebook.countries import COUNTRY_SKILLS
from varifocal.sciencebook.earth import EARTH
from varifocal.sciencebook.economy import ECONOMY
from varifocal.sciencebook.language import LANGUAGE
from varifocal.sciencebook.life import LIFE
from varifocal.sciencebook.matter import MATTER
from varifocal.sciencebook.measures import MEASURES
from varifocal.sciencebook.physics import PHYSICS
from varifocal.sciencebook.reading import READING
from varifocal.sciencebook.science import SCIENCE
from varifocal.sciencebook.skill import Skill
from varifocal.sciencebook.society import SOCIETY
from varifocal.sciencebook.words import WORDS

IMAGE_SKILLS = (*PHYSICS, *MATTER, *MEASURES, *COUNTING, *EARTH, *LIFE, *SOCIETY, *LANGUAGE)
TEXT_SKILLS = (*SCIENCE, *ECONOMY, *COUNTRY_SKILLS, *READING, *WORDS)
SKILLS: dict[str, Skill] = {skill.name: skill for skill in (*IMAGE_SKILLS, *TEXT_SKILLS)}
"""Every skill by its name, in the order in which they take turns."""


def find_skills(names: Sequence[str] | None) -> list[Skill]:
    """Look skills up by name, in table order; None takes all.

    Raises:
        DataError: no names at all, or one that is not in the table.
    """
    if names is None:
        return list(SKILLS.values())
    for name in names:
        if name not in SKILLS:
            raise DataError(f"skills: no skill {name!r}{nearest(name, SKILLS)}")
    if not names:
        raise DataError("skills: name at least one skill, or leave it out to take all")
    return [skill for skill in SKILLS.values() if skill.name in names]


def chance(skill: str) -> float:
    """The accuracy of a blind guess at a skill's questions, 0 to 1.

    Args:
        skill: a name from the table, or the title that stands in a record's `skill`.

    Raises:
        DataError: no such skill.

    Example:
        >>> chance("magnets")
        0.5
    """
    for row in SKILLS.values():
        if skill in (row.name, row.title):
            return row.chance
    raise DataError(f"no skill {skill!r}{nearest(skill, SKILLS)}")

"""Procedural multimodal science questions in ScienceQA's layout.

Every image is drawn and every text composed by a small function, one per skill, so the data set
needs no download, is true by construction, and can be as large as wanted. A new skill is one
function and one table row: see `skill.py` for what both look like.
"""

from varifocal.sciencebook.skill import Skill, SkillQuestion
from varifocal.sciencebook.table import SKILLS, chance
from varifocal.sciencebook.write import Summary, compose, draw_image, make_sciencebook

__all__ = [
    "SKILLS",
    "Skill",
    "SkillQuestion",
    "Summary",
    "chance",
    "compose",
    "draw_image",
    "make_sciencebook",
]

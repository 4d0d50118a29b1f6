"""Every knob of a run, on one validated page.

A recipe is written as YAML, read strictly (an unknown key is an error, answered with the nearest
known one), never changed afterwards, and written back whole into the run directory. Names under
`training` are those of `transformers.TrainingArguments`; the few of our own are marked.

Paths: `~` is the home directory. A relative path in a recipe starts at the recipe's own folder, or
at `data.root` for data sources; in a recipe that ships with Varifocal it starts at the current
directory. In an override it starts where it would in the recipe. A loaded recipe holds absolute
paths only.
"""

from varifocal.recipe.data import (
    DataSection,
    FileSection,
    HubSection,
    MixtureSection,
    SourceSection,
)
from varifocal.recipe.keep import DistillSection, KeepSection, ReplaySection
from varifocal.recipe.model import (
    ClsPyramidSection,
    ConnectorSection,
    ImagePreparationSection,
    LinearSection,
    LlavaMLPSection,
    ModelSection,
    PatchMLPSection,
)
from varifocal.recipe.reading import find_recipe, load_recipe
from varifocal.recipe.sections import AlignmentSection, EvaluationSection, Recipe
from varifocal.recipe.training import TrainingSection
from varifocal.recipe.tuners import (
    FullSection,
    LoraExpertsSection,
    LoraSection,
    MixLoraSection,
    MMASection,
    NoTunerSection,
    PeftSection,
    TunerSection,
    leaves_text,
)

__all__ = [
    "AlignmentSection",
    "ClsPyramidSection",
    "ConnectorSection",
    "DataSection",
    "DistillSection",
    "EvaluationSection",
    "FileSection",
    "FullSection",
    "HubSection",
    "ImagePreparationSection",
    "KeepSection",
    "LinearSection",
    "LlavaMLPSection",
    "LoraExpertsSection",
    "LoraSection",
    "MMASection",
    "MixLoraSection",
    "MixtureSection",
    "ModelSection",
    "NoTunerSection",
    "PatchMLPSection",
    "PeftSection",
    "Recipe",
    "ReplaySection",
    "SourceSection",
    "TrainingSection",
    "TunerSection",
    "find_recipe",
    "leaves_text",
    "load_recipe",
]

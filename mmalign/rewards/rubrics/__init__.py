"""Rubrics: what a judge is asked, how it answers and how the answer is read, each one YAML file.

`load_rubric("image_alignment")` reads one that comes with mmalign, `load_rubric("mine.yaml")` one of yours.
"""

from mmalign.rewards.rubrics.files import load_rubric, rubric_names
from mmalign.rewards.rubrics.rendering import Rendered, defuse, render
from mmalign.rewards.rubrics.rubric import OUTPUTS, Rubric

__all__ = ["OUTPUTS", "Rendered", "Rubric", "defuse", "load_rubric", "render", "rubric_names"]

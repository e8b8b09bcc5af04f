"""Run a recipe: from rows on disk to a fine-tuned model."""

from cwdpo.recipes.run import run_recipe
from cwdpo.recipes.stages import Interrupted

__all__ = ["Interrupted", "run_recipe"]

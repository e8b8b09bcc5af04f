"""Run a recipe: from rows on disk to a fine-tuned model."""

from cwdpo.recipes.run import Interrupted, run_recipe

__all__ = ["Interrupted", "run_recipe"]

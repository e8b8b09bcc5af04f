"""Write docs/recipe.md, the page of every key of a recipe: python docs/make_recipe.py"""

from pathlib import Path

from cwdpo.config.reference import reference_page

PAGE = Path(__file__).parent / "recipe.md"

if __name__ == "__main__":
    PAGE.write_text(reference_page(), encoding="utf-8")
    print(f"written: {PAGE}")

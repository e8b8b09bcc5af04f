"""``cwdpo schema``: a JSON schema of recipes, for editors."""

import json

from cwdpo.cli.quiet import quiet_libraries


def schema() -> None:
    """Print a JSON schema of recipes, from which editors complete keys and mark mistakes.

    Put it into a file, and write # yaml-language-server: $schema=FILE as the recipe's first line.
    """
    quiet_libraries()
    from cwdpo.config.checking import set_elsewhere
    from cwdpo.config.reference import recipe_schema
    from cwdpo.trainers.arguments import argument_types

    fields = {name: hint for name, hint in argument_types().items() if not set_elsewhere(name)}
    print(json.dumps(recipe_schema(fields), indent=2))

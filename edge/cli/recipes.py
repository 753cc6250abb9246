"""edge recipes"""

from typing import Annotated

import typer

from edge.cli._output import Json, print_json, print_table


def command(
    show: Annotated[str | None, typer.Option("--show", help="Print one recipe's TOML, to start your own from.")] = None,
    json: Json = False,
) -> None:
    """List the recipes that come with edge."""
    from edge.core.errors import UsageError, nearest
    from edge.core.recipe import load_recipe, presets

    known = presets()
    if show is not None:
        if show not in known:
            raise UsageError("recipe.unknown", f"no recipe is called '{show}'", nearest(show, known))
        print(known[show].read_text(), end="")
        return
    recipes = [load_recipe(name) for name in known]
    if json:
        print_json(recipes)
        return
    steps = [" + ".join(dict.fromkeys(step.method for step in recipe.steps)) for recipe in recipes]
    print_table(
        ("recipe", "methods", "what it does"), [(r.name, s, r.description) for r, s in zip(recipes, steps, strict=True)]
    )

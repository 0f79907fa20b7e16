"""Tells what a store holds of weights that shipped before under the same name. Light: standard library only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from shlex import quote

from cache.store import Store
from pipeline.request.recipe import Recipe
from stages import catalogue
from stages.plural import is_or_are, pluralized


def earlier_weights_notes(recipe: Recipe, store: Store) -> Iterator[str]:
    """One line for each earlier weights of the recipe's model that results in the store were made with."""
    if recipe.weights is not None or recipe.model.repo is not None:
        return
    receipts = store.receipts(on_damage=lambda damage: None)  # verify reports it
    names = (catalogue.earlier_weights(receipt.components) for receipt in receipts)
    for name, count in sorted(Counter(filter(None, names)).items()):
        results = pluralized(count, "result")
        yield (
            f"note: {results} in this store {is_or_are(count)} of {name}, which {recipe.model.name} was before: its "
            f"latents and adapters are not used. `sa3-trainer evict --model {name} --store {quote(str(store.root))}` "
            "frees them; copies in the output folder stay"
        )

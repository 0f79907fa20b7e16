"""The run's own store and output beside or inside the data: kept apart, and marked. Light: standard library only."""

from __future__ import annotations

from cache.files.folder_mark import OUTPUT_MARK, STORE_MARK, looks_like_store, mark
from pipeline.errors import FieldError, RecipeError
from pipeline.request.paths import is_url, local_path
from pipeline.request.recipe import Recipe


def check_store_place(recipe: Recipe) -> None:
    """Check that the store is not a folder of the data with other files in it: a store is never read as data.

    Raises:
        RecipeError: naming the store, and one that would do.
    """
    if is_url(recipe.source) or recipe.source.startswith("data:"):
        return
    data, store = local_path(recipe.source).resolve(), recipe.store.resolve()
    if not (store == data or data in store.parents) or not store.is_dir():
        return
    names = {entry.name for entry in store.iterdir()}
    if store == data or (names and not looks_like_store(names)):
        better = recipe.store / "artifacts"
        msg = f"is a folder of the data itself, with other files in it: give one of its own, such as {better}"
        raise RecipeError([FieldError(loc=("store",), type="store_in_data", msg=msg, input=str(recipe.store))])


def mark_folders(recipe: Recipe, *, store: bool, output: bool) -> None:
    """Mark the store, and the output folder if it is new, so that neither is ever read as data.

    An output folder with other files in it stays a folder like any other: there may be clips among them.

    Args:
        store, output: which of them exist and can be written.
    """
    if store:
        mark(recipe.store, STORE_MARK)
    if output and not any(recipe.output.iterdir()):
        mark(recipe.output, OUTPUT_MARK)

"""Text of docs/fields.md, made from the declarations. Light: standard library only.

python -m pipeline.request.fields_page > docs/fields.md
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pipeline.request.fields import DATA, FIELDS, SECTIONS
from stages.field import Field, extra_in_words

_INTRODUCTION = """\
# Fields of a request

The names are the same everywhere: flags (`--number-of-steps 500`) and keys of a recipe TOML (`--recipe FILE`; flags
win). All errors of a request are reported together. Short names: `steps` (number_of_steps), `lr` (learning_rate),
`dataset` or `data` (audio_data_url). `sa3-trainer COMMAND --help` shows what most people set, `--help-all` the rest.

A recipe's relative paths follow the recipe, wherever it is used from. The JSON beside an adapter is a recipe too: it
holds every field that was not at its default, but no paths, so the data is given with it
(`sa3-trainer run clips.zip --recipe output/drums.json`).

Defaults of your own: `SA3_STORE` and `SA3_WEIGHTS`, or a file `~/.config/sa3-trainer/config.toml` (Windows:
`%APPDATA%\\sa3-trainer\\config.toml`; `SA3_CONFIG` names another) that may set `store`, `output`, `weights`, `device`,
`threads` and `workers`. Flags win, then the recipe, the environment, this file.

- **stage**: the stage that uses the field. Results of earlier stages are reused whatever its value.
- **hashed**: whether the value is part of the fingerprint that names a result. The other fields say where files are and
  how fast a stage runs.
- Extras are optional packages: `pip install -e ".[quantization]"`.

`python -m pipeline.request.json_schema` prints a JSON Schema of the same fields, for editors and clients.

Generated from the declarations in the code: change those, then `make fields`.
"""

_HEADINGS = ("| field | default | values | stage | hashed | meaning |", "|---|---|---|---|---|---|")


def fields_page(fields: Sequence[Field] = FIELDS) -> str:
    """The whole page, Markdown."""
    sections = [(title, [field for field in fields if field.section == title]) for title in SECTIONS]
    lines = [line for title, listed in sections for line in _table(title, listed)]
    return "\n".join([_INTRODUCTION, *lines])


def _table(title: str, fields: Sequence[Field]) -> Iterator[str]:
    yield f"## {title}\n"
    yield from _HEADINGS
    rows = [DATA, *fields] if title == SECTIONS[0] else fields
    yield from (_row(field) for field in rows)
    yield ""


def _row(field: Field) -> str:
    meaning = field.help + (f"; {extra_in_words(field)}" if field.needs else "")
    cells = (f"`{field.name}`", _default(field), _values(field), field.stage or "all", _yes_or_no(field), meaning)
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _yes_or_no(field: Field) -> str:
    return "yes" if field.hashed else "no"


def _default(field: Field) -> str:
    if field.kind == "bool":
        return "on" if field.default else "off"
    return {None: "unset", ...: "required"}.get(field.default, str(field.default))


_BOUNDS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}


def _values(field: Field) -> str:
    """What may be given: choices, a range, or a word for the type."""
    limits = {word: bound for word, bound in field.limits.items() if word in _BOUNDS}
    if field.kind == "choice":
        return ", ".join(f"`{value}`" for value in field.values)
    if set(limits) == {"ge", "le"}:
        return f"{limits['ge']} to {limits['le']}"
    if limits:
        return ", ".join(f"{_BOUNDS[word]} {bound}" for word, bound in limits.items())
    return {"names": "list, or one comma or space separated string", "bool": "on, off"}.get(
        field.kind, field.rule or "text"
    )


if __name__ == "__main__":
    print(fields_page(), end="")

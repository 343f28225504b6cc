"""The recipe: one YAML file that says everything about a run.

- `sections`: our keys, their types, bounds and meaning
- `document`: YAML text and command-line overrides → one mapping, with line numbers
- `checks`: faults that types cannot show: refused, renamed, contradicting keys
- `keys`: which keys there are; unknown, misplaced and refused ones
- `values`: one value against its type, and types in words
- `loading`: mapping → `Recipe`, every fault told at once
- `writing`: `Recipe` → the resolved YAML, its hash and the differences between two
- `schema`: JSON Schema and `recipes/README.md`, made from the dataclasses
"""

from alpacare_sft.recipe.loading import Recipe, load_recipe

__all__ = ["Recipe", "load_recipe"]

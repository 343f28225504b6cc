"""`recipes/README.md` and the types of `train` and `lora` for mypy, both made from the dataclasses.

python -m tests.recipe_reference reference > recipes/README.md
python -m tests.recipe_reference stub > alpacare_sft/recipe/upstream_sections.pyi
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import sys
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any, get_type_hints

from alpacare_sft.recipe import rules
from alpacare_sft.recipe.keys import Key, describe_type, nested_section, section_types
from alpacare_sft.recipe.reference import OWN_SECTIONS, field_docs
from alpacare_sft.recipe.sections import TopKeys
from alpacare_sft.recipe.upstream import flatten

TRL_PAGE = "https://huggingface.co/docs/trl/sft_trainer#trl.SFTConfig"
PEFT_PAGE = "https://huggingface.co/docs/peft/package_reference/lora#peft.LoraConfig"


def upstream_stub() -> str:
    """The text of `upstream_sections.pyi`: the types of `recipe.train` and `recipe.lora` for mypy and editors."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("trl", "transformers", "peft"))
    lines = [f"# Made by `make alpacare_sft/recipe/upstream_sections.pyi` from {versions}."]
    lines += ["from dataclasses import dataclass", "from typing import Any, Literal"]
    for section in ("train", "lora"):
        kind = section_types()[section]
        lines += ["", "@dataclass(kw_only=True)", f"class {kind.__name__}:"]
        for item in dataclasses.fields(kind):
            parts = [part.__name__ if isinstance(part, type) else str(part) for part in flatten(item.type)]
            lines.append(f"    {item.name}: {' | '.join(parts)}".replace("typing.", "").replace("NoneType", "None"))
            lines[-1] = re.sub(r"\bdict\b(?!\[)", "dict[str, Any]", lines[-1])
    return "\n".join(lines) + "\n"


def recipe_reference() -> str:
    """The text of `recipes/README.md`."""
    lines = [_HEAD]
    for name, section in OWN_SECTIONS.items():
        lines += [f"## {name}", "", inspect.getdoc(section) or "", "", *_table(section), ""]
    lines += ["## At the top", "", *_table(TopKeys)]
    lines += ["", *_upstream_reference()]
    return "\n".join(lines) + "\n"


def _table(section: type) -> Iterator[str]:
    yield from ["| key | type | default | meaning |", "|---|---|---|---|"]
    docs, hints = field_docs(section), get_type_hints(section, include_extras=True)
    for item in dataclasses.fields(section):
        if nested_section(hints[item.name]) is None:
            kind = describe_type(hints[item.name]).replace("|", "\\|")
            yield f"| `{item.name}` | {kind} | {_default(item)} | {docs[item.name]} |"


_HEAD = """\
# Recipes

A recipe is one YAML file. `t4.yaml` is the reference, `t4-qlora.yaml` the same on a 4-bit base,
`demo.yaml` the same shape at a size that a laptop trains in minutes.

Every key has an override on the command line: `--data.splits.train 40`. All faults are reported at
once, before anything is loaded. A section left out has its defaults. Editors with YAML support
complete and check a recipe by the line at its top, once `make recipes/schema.json` has written the
schema (it depends on the versions of TRL and PEFT that you have).

<!-- Made by `make recipes/README.md` from alpacare_sft/recipe; edit the docstrings there. -->
"""


def _upstream_reference() -> Iterator[str]:
    yield from ["## train", "", f"Every argument of [`trl.SFTConfig`]({TRL_PAGE}), under its own name, but for:", ""]
    yield from ["| key | instead |", "|---|---|"]
    yield from (f"| `{key}` | {reason} |" for key, reason in rules.REFUSED["train"].items())
    yield "| `gradient_checkpointing` | Renamed upstream: `activation_checkpointing` |"
    yield from ["", "Precision (`fp16`, `bf16`) left out means: by hardware. CUDA devices of compute capability"]
    yield from ["below 8.0 (T4, P100) get fp16, from 8.0 on bf16, a CPU float32.", ""]
    yield from ["## lora", "", f"Every argument of [`peft.LoraConfig`]({PEFT_PAGE}), under its own name, but for:", ""]
    yield from ["| key | instead |", "|---|---|"]
    yield from (f"| `{key}` | {reason} |" for key, reason in rules.REFUSED["lora"].items())
    yield "| `modules_to_save` | Must be empty: the adapter holds LoRA weights alone |"


def _default(item: dataclasses.Field[Any]) -> str:
    value = Key(None, item, object).default
    if value is dataclasses.MISSING:
        return "required"
    if value is None:
        return "`null`"
    text = str(value).lower() if isinstance(value, bool) else json.dumps(value, ensure_ascii=False)
    return "see [sections.py](../alpacare_sft/recipe/sections.py)" if len(text) > 120 else f"`{text}`"


if __name__ == "__main__":
    made = {"reference": recipe_reference, "stub": upstream_stub}
    print(made[sys.argv[1]](), end="")

"""Whose terms an adapter stands under: those of its base, of its data, and what they ask of a publication."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from alpacare_sft.recipe.names import EMBEDDED_FILES, EMBEDDED_NAME, DataPath, path_entries

if TYPE_CHECKING:
    from alpacare_sft.recipe.sections import HubSection

# What each licence of Meta asks for is read in models/llama*/LICENSE of github.com/meta-llama/llama-models (commit
# a9c89c4), section 1.b: a copy of it, the notice, and from Llama 3 on a line to display and how the name begins.
_META = "Meta Platforms, Inc. All Rights Reserved."
# Llama with the version of a licence in the name; a size (`llama-3b`) and `4bit` are none.
_LLAMA = re.compile(r"llama[-_]?(2|3[._][123]|3|4)(?![\d.]|b(?:it)?(?![a-z]))", re.IGNORECASE)
_NOT_OF_META = re.compile(r"(?:tiny|open)[-_]?llama", re.IGNORECASE)
# Families whose number is not that of the licence, with the version that it is; each has its source. Llama Guard 3 8B
# is not among them: its repository holds the licence of 3.2, its page on the Hub names that of 3.1.
_FAMILIES = {
    r"code-?llama": "2",  # LICENSE of github.com/meta-llama/codellama, which names that of meta-llama/llama
    r"llama-?guard-7b": "2",  # README.md of github.com/meta-llama/PurpleLlama (4be64c3), "License"
    r"llama-?guard-2": "3",  # the same; so does Llama-Guard2/README.md
    r"llama-?guard-3-(?:1b|11b)": "3.2",  # Llama-Guard3/1B/LICENSE and 11B-vision/LICENSE there
    r"llama-?guard-4": "4",  # Llama-Guard4/12B/LICENSE there
    r"deepseek-r1-distill-llama-8b": "3.1",  # README.md of github.com/deepseek-ai/DeepSeek-R1, "License"
    r"deepseek-r1-distill-llama-70b": "3.3",  # the same
}
_LLAMA_ID = re.compile(r"llama(2|3\.[123]|3|4)")


@dataclass(frozen=True)
class BaseLicense:
    """The licence of a base model and what it asks of an adapter that is published.

    Attributes:
        id: as the Hub spells it.
        title: in words.
        page: where it can be read.
        name_prefix: how the adapter's name must begin, or empty.
        notice: text that must come with it, or empty.
        built_with: what must be displayed, or empty.
    """

    id: str
    title: str
    page: str
    name_prefix: str = ""
    notice: str = ""
    built_with: str = ""


@dataclass(frozen=True)
class DataLicense:
    """The licence of rows, or what is known in its place.

    Attributes:
        id: as the Hub spells it, or None where it is not stated.
        statement: sentences for the model card.
    """

    id: str | None
    statement: str

    @property
    def non_commercial(self) -> bool:
        """Whether it forbids commercial use."""
        return self.id is not None and "-nc" in self.id.lower()


# What the Hub takes as `license` in a model card, as its own refusal listed it on 2026-05-10 (huggingface_hub#4218).
_LISTED = """
apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m
afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5
cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0
cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0
cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0
lgpl lgpl-2.1 lgpl-3.0 isc h-research intel-research lppl-1.3c ms-pl apple-ascl apple-amlr mpl-2.0 odc-by odbl
openmdw-1.0 openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr deepfloyd-if-license
fair-noncommercial-research-license llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 grok2-community gemma unknown
other
"""
HUB_LICENSES = tuple(_LISTED.split())
_FILLER = re.compile(r"\b(the|licen[cs]e|version|international|unported|community|public|agreement)\b|v(?=\d)")


def nearest_license(text: str) -> str | None:
    """The licence of the Hub's list that a text most likely means, or None."""
    words = re.findall(r"[a-z0-9.+]+", _FILLER.sub(" ", text.lower()))
    spelled = "-".join(words)
    if spelled in HUB_LICENSES:
        return spelled
    longer = (f"{spelled}-", f"{spelled}.")
    begins = [name for name in sorted(HUB_LICENSES, reverse=True) if spelled and name.startswith(longer)]
    close = [min(begins, key=len)] if begins else difflib.get_close_matches(spelled, HUB_LICENSES, n=1)
    return close[0] if close else None


def spelling_fault(key: str, hub: HubSection) -> str:
    """What is wrong with a licence that is not as the Hub spells it, with the nearest that is.

    Args:
        key: `license` or `data_license`.
        hub: the section that states it.
    """
    stated = getattr(hub, key)
    nearest = nearest_license(stated or "")
    hint = f"Did you mean {nearest}? " if nearest else ""
    return (
        f"hub.{key} must be a licence as the Hub spells it, got {stated!r}. {hint}For one that is not on its list use "
        "other (https://huggingface.co/docs/hub/repositories-licenses)."
    )


def unlisted_license(hub: HubSection) -> Iterator[str]:
    """What is wrong with `hub.license` by the dated list, for where the Hub cannot be asked."""
    if hub.license and hub.license not in HUB_LICENSES:
        yield spelling_fault("license", hub)


# By names in small letters: the Hub takes letter case for no difference.
KNOWN_DATA = {
    # DATA_LICENSE of github.com/XZhang97666/AlpaCare (b469c41); the copy on the Hub states none.
    "lavita/alpacare-medinstruct-52k": DataLicense(
        "cc-by-nc-4.0",
        "The AlpaCare authors release the data for non-commercial use (CC BY-NC 4.0); this copy of it states no "
        "licence. Its answers were written by OpenAI models, whose terms of use may add to that.",
    ),
    **{name: DataLicense("cc0-1.0", "Written for alpacare_sft, CC0-1.0.") for name in EMBEDDED_FILES},
}


def base_license(name: str, stated: str | None = None) -> BaseLicense | None:
    """The licence of a base model, or None where it is not known here.

    Args:
        name: of the base on the Hub.
        stated: `hub.license`; where the name does not tell the version of Llama's licence, this may.
    """
    if name.lower() == EMBEDDED_NAME.lower():
        return BaseLicense("apache-2.0", "Apache-2.0", "https://www.apache.org/licenses/LICENSE-2.0")
    of_meta = "" if _NOT_OF_META.search(name) else name
    of_family = (version for family, version in _FAMILIES.items() if re.search(family, of_meta, re.IGNORECASE))
    match = _LLAMA.search(of_meta)
    version = next(of_family, match[1].replace("_", ".") if match else None)
    if version is None and (match := _LLAMA_ID.fullmatch(stated or "")):
        version = match[1]
    if version is None:
        return None
    if version == "2":  # asks for no name and no line to display
        notice = f"Llama 2 is licensed under the LLAMA 2 Community License, Copyright (c) {_META}"
        return BaseLicense("llama2", "Llama 2 Community License", "https://ai.meta.com/llama/license/", notice=notice)
    full = "Meta Llama 3" if version == "3" else f"Llama {version}"
    return BaseLicense(
        f"llama{version}",
        f"{full} Community License",
        f"https://www.llama.com/llama{version.replace('.', '_')}/license/",
        name_prefix="Llama-3" if version == "3" else "Llama",
        notice=f"{full} is licensed under the {full} Community License, Copyright © {_META}",
        built_with="Built with Meta Llama 3" if version == "3" else "Built with Llama",
    )


def data_license(path: DataPath, hub: HubSection) -> DataLicense:
    """The licence of `data.path`: as the recipe states it, else as it is known, else not stated."""
    if hub.data_license:
        return DataLicense(hub.data_license, "As the recipe states it (`hub.data_license`).")
    names = [entry if isinstance(entry, str) else entry.path for entry in path_entries(path)]
    unknown = DataLicense(None, "The licence of the data is not stated.")
    licenses = [KNOWN_DATA.get(name.lower(), unknown) for name in names]
    return licenses[0] if len({license.id for license in licenses}) == 1 else unknown


def adapter_license(base: str, hub: HubSection) -> str | None:
    """The licence that the model card names for the adapter, or None where neither recipe nor base says one."""
    known = base_license(base)
    return hub.license or (known.id if known else None)


def license_faults(base: str, path: DataPath, hub: HubSection) -> Iterator[str]:
    """What the licences forbid about a publication, each with its remedy."""
    known = base_license(base, hub.license)
    name = (hub.repo_id or "").rpartition("/")[2]
    begins = known is not None and name.replace("-", "").startswith(known.name_prefix.replace("-", ""))
    if known and name and not begins:
        yield (
            f"hub.repo_id: the name of an adapter for {base} must begin with {known.name_prefix!r}, got {name!r}: the "
            f"{known.title} requires it ({known.page}). Name it {known.name_prefix}-{name}."
        )
    if known and known.notice and hub.license not in (None, known.id):
        yield (
            f"hub.license must be {known.id} or left out, got {hub.license!r}: the {known.title} covers an adapter for "
            f"{base} ({known.page})."
        )
    if known is None and not hub.license and "llama" in base.lower():
        yield (
            f"hub.license must name the licence of {base}, got nothing: its name contains llama but does not say which "
            "licence covers it. Read that on its page on the Hub and state it, such as --hub.license llama3.1 or "
            "--hub.license apache-2.0."
        )
    rows = data_license(path, hub)
    # whether it forbids something is read in its spelling
    if hub.data_license and hub.data_license not in HUB_LICENSES:
        yield spelling_fault("data_license", hub)
    if rows.id and "-nd" in rows.id.lower():
        yield (
            f"hub.data_license: {rows.id} forbids sharing derivatives of the rows, and an adapter is one. "
            "Ask their owner, or train on other rows."
        )
    if hub.include_rows and rows.id is None:
        yield (
            "hub.include_rows: true publishes the text of rows, and nothing says that their licence allows it. "
            "State it in hub.data_license, or leave include_rows out."
        )

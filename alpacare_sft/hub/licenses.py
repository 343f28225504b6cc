"""Whose terms an adapter stands under: those of its base, of its data, and what they ask of a publication."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from alpacare_sft.data.files import EMBEDDED_FILES, local_files
from alpacare_sft.errors import DataError
from alpacare_sft.model import EMBEDDED_NAME

if TYPE_CHECKING:
    from alpacare_sft.recipe.sections import HubSection

_META = "Copyright © Meta Platforms, Inc. All Rights Reserved."
# Llama with the version of a licence in the name; `open_llama_3b` and `TinyLlama-1.1B` are models of others.
_LLAMA = re.compile(r"llama-?(3\.[123]|3|4)(?![\d.]|b\b)", re.IGNORECASE)


@dataclass(frozen=True)
class BaseLicense:
    """The licence of a base model and what it asks of an adapter that is published.

    Attributes:
        id: as the Hub spells it.
        title: in words.
        page: where it can be read.
        name_prefix: how the adapter's name must begin, or empty.
        notice: text that must come with it, or empty.
    """

    id: str
    title: str
    page: str
    name_prefix: str = ""
    notice: str = ""


@dataclass(frozen=True)
class DataLicense:
    """The licence of rows, or what is known in its place.

    Attributes:
        id: as the Hub spells it, or None where it is not stated.
        told: a sentence for the card.
    """

    id: str | None
    told: str

    @property
    def non_commercial(self) -> bool:
        """Whether it forbids commercial use."""
        return self.id is not None and "-nc" in self.id.lower()


KNOWN_DATA = {
    "lavita/AlpaCare-MedInstruct-52k": DataLicense(
        "cc-by-nc-4.0",
        "Its answers were written by OpenAI models, and the AlpaCare authors release what they made of it for "
        "non-commercial use (CC BY-NC 4.0); the terms in force are those of its page.",
    ),
    **{name: DataLicense("cc0-1.0", "Written for alpacare_sft, CC0-1.0.") for name in EMBEDDED_FILES},
}


def base_license(name: str) -> BaseLicense | None:
    """The licence of a base model by its name on the Hub, or None where it is not known here."""
    if name == EMBEDDED_NAME:
        return BaseLicense("apache-2.0", "Apache-2.0", "https://www.apache.org/licenses/LICENSE-2.0")
    found = _LLAMA.search(name)
    if found is None:
        return None
    version = found[1]
    full = "Meta Llama 3" if version == "3" else f"Llama {version}"
    title = f"{full} Community License"
    return BaseLicense(
        f"llama{version}",
        title,
        f"https://www.llama.com/llama{version.replace('.', '_')}/license/",
        name_prefix="Llama-3" if version == "3" else "Llama",
        notice=f"{full} is licensed under the {title}, {_META}",
    )


def data_license(path: str | Sequence[str], hub: HubSection) -> DataLicense:
    """The licence of `data.path`: as the recipe states it, else as it is known, else not stated."""
    if hub.data_license:
        return DataLicense(hub.data_license, "As the recipe states it (`hub.data_license`).")
    names = [path] if isinstance(path, str) else list(path)
    known = [KNOWN_DATA.get(name) for name in names]
    if known and all(known) and len({license.id for license in known if license}) == 1:
        return next(license for license in known if license)
    return DataLicense(None, "The licence of the data is not stated.")


def adapter_license(base: str, hub: HubSection) -> str | None:
    """The licence that the card names for the adapter, or None where neither recipe nor base says one."""
    known = base_license(base)
    return hub.license or (known.id if known else None)


def hub_dataset(path: str | Sequence[str]) -> str | None:
    """The Hub id that `data.path` is, or None if it names files or rows of the package."""
    if not isinstance(path, str) or path in EMBEDDED_FILES:
        return None
    try:
        return None if local_files(path) else path
    except DataError:  # files that are no longer there
        return None


def license_faults(base: str, path: str | Sequence[str], hub: HubSection) -> Iterator[str]:
    """What the licences forbid about a publication, each with its remedy."""
    known = base_license(base)
    name = (hub.repo_id or "").rpartition("/")[2]
    begins = known is not None and name.replace("-", "").startswith(known.name_prefix.replace("-", ""))
    if known and name and not begins:
        yield (
            f"hub.repo_id: the name of an adapter of {base} must begin with {known.name_prefix!r}, got {name!r}: the "
            f"{known.title} asks for it ({known.page}). Name it {known.name_prefix}-{name}."
        )
    if known and known.notice and hub.license not in (None, known.id):
        yield (
            f"hub.license must be {known.id} or left out, got {hub.license!r}: an adapter of {base} stands under the "
            f"{known.title} ({known.page})."
        )
    rows = data_license(path, hub)
    if rows.id and "-nd" in rows.id.lower():
        yield (
            f"hub.data_license: {rows.id} forbids sharing what is made of the rows, and an adapter is. "
            "Ask their owner, or train on other rows."
        )
    if hub.include_rows and rows.id is None:
        yield (
            "hub.include_rows: true publishes the text of rows, and nothing says that their licence allows it. "
            "State it by hub.data_license, or leave include_rows out."
        )

"""When two texts count as the same: copies of a row, one question in two spellings."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from hashlib import blake2b
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset

# Signs that keyboards, fonts and PDF readers write in place of one another. Micro, ohm and angstrom signs are not
# here: NFC and case folding already make them the letters μ, ω and å.
_SAME_SIGN = str.maketrans(
    {
        **dict.fromkeys("\u00ba\u02da", "\u00b0"),  # masculine ordinal, ring above: degree
        **dict.fromkeys("\u2010\u2011\u2012\u2013\u2212\ufe63\uff0d", "-"),  # hyphens, short dashes, minus
        **dict.fromkeys(
            "\u00ad\u200b\u2060\ufeff\ufe0e\ufe0f"
        ),  # not printed: soft hyphen, zero-width spaces, variants
    }
)


def copy_key(text: str) -> str:
    """What two texts share if they are copies: NFC, with each run of white space as one space."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def question_key(text: str) -> str:
    """What two spellings of one question share: `copy_key` without case, and one sign for those that look alike.

    Never NFKC, which makes 10⁶ and 106 the same. Source: Unicode Standard, D145, canonical caseless matching.
    """
    if not text.isascii():
        text = unicodedata.normalize("NFD", text).translate(_SAME_SIGN)
    return copy_key(text.casefold())


def question_digests(rows: Dataset) -> np.ndarray:
    """Digests of the keys of instruction and input of each row, 16 bytes each, shape (N,)."""
    import numpy as np

    digests = bytearray()
    for instruction, given in question_texts(rows):
        instruction, given = question_key(instruction), question_key(given or "")
        digests += blake2b(f"{len(instruction)} {instruction}{given}".encode(), digest_size=16).digest()
    return np.frombuffer(digests, "S16")


def question_texts(rows: Dataset) -> Iterator[tuple[str, str | None]]:
    """Instruction and input of each row, a batch of rows in memory at a time."""
    for batch in rows.select_columns(["instruction", "input"]).iter(1_000):
        yield from zip(batch["instruction"], batch["input"], strict=True)

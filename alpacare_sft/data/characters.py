"""Characters of one text: which say nothing and go, which can be mended with certainty, and which are doubtful.

What a reader sees must not change: a sign that is lost beside a number makes another dose. So a character is removed
only where it is known to be invisible, and what may stand for something stays and is counted.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from alpacare_sft.data.text import strip, unify_breaks

# A low quote opens. After a letter or a digit it is a comma of another font, as in 3‚5 mg. After `â€`, curly quotes
# are halves of damaged characters, which only whoever made them can mend. Primes (′ ″) measure and do not quote.
_QUOTES = re.compile("(?<!\\w)[‚„]|(?<!â€)[‘’‛“”‟]")
_STRAIGHT = {**dict.fromkeys("‘’‚‛", "'"), **dict.fromkeys("“”„‟", '"')}

_CONTROLS = "[\\x00-\\x08\\x0e-\\x1b\\x7f]"
# Letters and signs that zero-width joiners join: scripts from Hebrew to the Indic ones, Arabic forms, symbols, emoji.
_JOINED = (
    "\\u0590-\\u1cff\\u20e3\\u2190-\\u2bff\\ua800-\\uabff\\ufb1d-\\ufdff\\ufe0f\\ufe70-\\ufefc\\U00010840-\\U0001faff"
)
_WITHOUT_SPACES = "\\u0e00-\\u0eff\\u1000-\\u109f\\u1780-\\u17ff"  # Thai, Lao, Burmese, Khmer
_SAYS_NOTHING = re.compile(
    # Controls, unless a number is beside them: PDF readers give a sign of an unknown font as one (2–8 as 2\x028).
    f"(?<!\\d)(?<!\\d\\s)(?<!{_CONTROLS}){_CONTROLS}++(?!\\s?\\d)"
    # Soft hyphens inside a word; beside a number or at the end of a line they are the hyphen that a reader sees.
    "|(?<![\\d\\s])\\xad(?![\\d\\s])"
    # Zero-width spaces, unless they part words of a script that has no other way to.
    f"|(?<![{_WITHOUT_SPACES}])\\u200b"
    # Word joiner, byte order mark, and the format characters that Unicode deprecates.
    "|[\\u2060\\ufeff\\u206a-\\u206f]"
    # Joiners (Persian, Indic scripts, emoji) where there is nothing to join or to part.
    f"|(?<![{_JOINED}\\u200c\\u200d])[\\u200c\\u200d]++(?![{_JOINED}])"
    # Tags, but for those that make a flag (England, Scotland, Wales).
    "|(\\U0001f3f4[\\U000e0020-\\U000e007f]++)|[\\U000e0000-\\U000e007f]"
)
# Marks that order left to right order nothing in a text without a letter or mark of the other direction. In one with,
# removing a mark can move a sign or a number to another place, so all stay.
_LEFT_TO_RIGHT = re.compile("[\u200e\u202a\u202c\u202d\u2066\u2068\u2069]")
_RIGHT_TO_LEFT = re.compile(
    "[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc\U00010800-\U00010fff\U0001e800-\U0001efff\u200f\u202b\u202e\u2067]"
)
_SEPARATORS = re.compile("[\x1c-\x1f]")  # of files, groups, records and units: white space
# What the expressions above and below may change; most texts have none of these, and one look is enough.
_CANDIDATES = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f\x85\xad\u200b-\u200f\u2028-\u202e\u2060\u2066-\u206f\uf020-\uf0ff\ufeff\U000e0000-\U000e007f]"
)

_PRIVATE = "[\\ue000-\\uf8ff\\U000f0000-\\U0010fffd]"
_BLANK = "[^\\S\\n]"
# Adobe's Symbol, as PDFs and Word give it: code + U+F000. Source: unicode.org/Public/MAPPINGS/VENDORS/ADOBE/symbol.txt.
# Of the Greek letters not those whose codes are bullets and boxes of Wingdings (F: a hand, l to x).
_GREEK = dict(zip("abcdefghijkDGSW", "αβχδεφγηιϕκΔΓΣΩ", strict=True))
_SYMBOL = {chr(0xF000 + ord(code)): sign for code, sign in _GREEK.items()} | {
    "\uf02b": "+", "\uf02d": "−", "\uf03c": "<", "\uf03d": "=", "\uf03e": ">", "\uf06d": "µ",
    "\uf0a3": "≤", "\uf0b0": "°", "\uf0b1": "±", "\uf0b3": "≥", "\uf0b4": "×",
}  # fmt: skip
_UNIT = "(?:[glLmMsUV]|mol|mm|IU|Eq|eq|osm|Gy|Sv|Ci|Bq|kat)(?![A-Za-z])"
_RELATIONS = "\uf0b1\uf0b3\uf03c\uf03d\uf03e"
_LETTERS = "".join(chr(0xF000 + ord(code)) for code in _GREEK)


def _sign(codes: str, before: str, after: str) -> re.Pattern[str]:
    """One of the codes, no other private one beside it, between what makes it certain."""
    return re.compile(f"({before})(?<!{_PRIVATE})([{codes}])(?!{_PRIVATE})(?={after})", re.MULTILINE)


_CERTAIN = [
    # 5 µg, /µL, per µL; not where a second code follows: a row of boxes to tick, as in 3 ❍M ❍F.
    _sign("\uf06d", f"[\\d/](?:{_BLANK}|-)?|\\bper{_BLANK}", f"{_UNIT}(?!{_BLANK}*\uf06d)"),
    _sign("\uf06d", f"\\S{_BLANK}|\\(", "mol\\b|g/\\w|g\\)"),  # a unit alone, but not at the beginning of a line
    _sign("\uf0b0", f"\\d{_BLANK}?", f"{_BLANK}?[CFK](?![A-Za-z])"),
    _sign("\uf0b0", "\\d", "\\W|$"),
    _sign("\uf0b0", f"\\S{_BLANK}|\\(", "[CF](?![A-Za-z])"),
    # At the beginning of a line a sign may be a bullet, unless no other line begins so.
    _sign(_RELATIONS, f"\\S{_BLANK}?", f"{_BLANK}?[-−+.\uf02d]?\\d"),
    _sign(_RELATIONS, "\\A", f"{_BLANK}?[-−+.\uf02d]?\\d(?![\\s\\S]*\n{_BLANK}*[{_RELATIONS}])"),
    # Wingdings 2 has the empty box of forms here, so only one in a line, and after a word or a bracket.
    _sign("\uf0a3", f"^[^\n\uf0a3]*(?:[\\w)%]{_BLANK}?|\\()", f"{_BLANK}?\\d[^\n\uf0a3]*$"),
    _sign("\uf0b4", f"(?:\\d|[cm]m){_BLANK}?", f"{_BLANK}?\\d"),
    _sign("\uf0b4", "\\d", f"{_BLANK}|$"),
    _sign("\uf02d\uf02b", f"\\d{_BLANK}?", f"{_BLANK}?\\d"),
    _sign("\uf02d", f"\\S{_BLANK}|[\\w%)(\\[/°]", "\\d"),
    _sign(_LETTERS, "\\d-?", ""),
    _sign(_LETTERS, "", "-?\\d"),
]  # fmt: skip

# Bytes 80 to BF as Latin-1 or Windows-1252 shows them: what follows the first byte of a character in UTF-8.
_LATER = "[\\x80-\\xbf€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ]"
_DAMAGED = re.compile(
    f"[ÂÃÎÏ]{_LATER}|(?:[ÐÑ]{_LATER}){{2,}}|[à-ï]{_LATER}{{2}}|ð{_LATER}{{3}}"  # Âµ, Ã—, Î¼, Ð´Ð°, â€“, ç³–
    "|\ufffd|[\\x80-\\x84\\x86-\\x9f]"  # replaced, or Windows-1252 read as Latin-1, where \x96 is a dash
)
_LOST_SIGN = re.compile("\\?(?:(?<=\\d\\?)|(?<=\\d\\s\\?))(?=(?:g|L|mol|C)\\b)")  # an encoding lacked it: 5 ?g, 38 ?C
_UNCERTAIN = re.compile("[\x00-\x08\x0e-\x1b\x7f\xad\ue000-\uf8ff\U000f0000-\U0010fffd]")


def straighten_quotes(text: str) -> str:
    """Curly quotes and apostrophes as straight ones; ′ and ″, which measure, stay."""
    return text if text.isascii() else _QUOTES.sub(lambda match: _STRAIGHT[match[0]], text)


def remove_non_printable(text: str, then: Callable[[str], str] = str) -> str:
    """Without characters that say nothing, and with the signs of a symbol font mended where they are certain.

    Args:
        text: any text.
        then: applied where something went: white space that an invisible character held apart is a run now.
    """
    if text.isascii() and text.replace("\n", "").replace("\t", "").isprintable():
        return text
    if not _CANDIDATES.search(text):
        return text
    result = _SAYS_NOTHING.sub(r"\1", _SEPARATORS.sub(" ", unify_breaks(text)))
    if _LEFT_TO_RIGHT.search(result) and not _RIGHT_TO_LEFT.search(result):
        result = _LEFT_TO_RIGHT.sub("", result)
    return text if (result := mend_symbols(result)) == text else then(strip(result))


def mend_symbols(text: str) -> str:
    """Private-use codes of Adobe's Symbol font as the signs that they are, where a number or a unit proves it.

    Wingdings and other fonts use the same codes: without such a neighbour, or in a row of them, a code stays.
    """
    if not any(code in text for code in _SYMBOL):
        return text
    for pattern in _CERTAIN:
        text = pattern.sub(lambda match: match[1] + _SYMBOL[match[2]], text)
    return text


def find_damage(text: str) -> re.Match[str] | None:
    """The first sign that a text was damaged before it came: wrongly decoded, or with a replaced character."""
    return _LOST_SIGN.search(text) or (None if text.isascii() else _DAMAGED.search(text))


def find_uncertain(text: str) -> re.Match[str] | None:
    """The first character that prints nothing certain: private use, a control, a soft hyphen."""
    return None if text.isascii() and text.isprintable() else _UNCERTAIN.search(text)


def find_mended(text: str) -> re.Match[str] | None:
    """The first code of a symbol font that `mend_symbols` mends."""
    if mend_symbols(text) == text:
        return None
    return next(filter(None, (pattern.search(text) for pattern in _CERTAIN)), None)


def show_invisible(text: str) -> str:
    """Text with each character that no font shows as its code point, such as <U+F0B7>."""
    return "".join(c if c.isprintable() or c.isspace() else f"<U+{ord(c):04X}>" for c in text)

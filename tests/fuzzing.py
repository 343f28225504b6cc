"""What the tests of `test_fuzz` draw: odd values, documents with one of them in any place, and how many cases."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable, Iterator
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

CASES = int(os.environ.get("FUZZ_CASES", "500"))

# What readers of text trip over: a mark of byte order, NUL, breaks that are none, bidi controls, half characters.
SIGNS = "\ufeff\x00\u2028\u2029\x85\x0b\x0c\x1b\x7f\u202e\u2066\u200b\u00ad\ufffd\u0301\U0001f600µ\ud800\udfff"
TEXT = st.one_of(
    st.text(max_size=12),
    st.text(alphabet="ab1 \t\r\n,;|\"'\\{}[]:#&*!%@`<>=+-./~$" + SIGNS, max_size=16),
    st.sampled_from(["", " ", "nan", "null", "true", "=1+1", "../../x", "~", "a" * 5000, "<script>x</script>", "\x00"]),
)
NUMBERS = st.one_of(
    st.integers(-3, 3),
    st.sampled_from([2**31, 2**63, 2**64, -(2**70), 10**400, 1e308, 1e-320, -0.0, float("inf"), float("nan")]),
    st.floats(),
)
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, TEXT)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXT, inner, max_size=3)),
    max_leaves=6,
)


def fuzz(share: float) -> Callable[[Any], Any]:
    """The settings of one test, with its share of all cases; the same cases at each run."""
    return settings(
        max_examples=max(1, round(CASES * share)),
        derandomize=True,
        database=None,
        deadline=None,
        phases=(Phase.explicit, Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )


def places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of each value in a document, its own first."""
    yield place
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in inner:
        yield from places(part, (*place, key))


def with_value(document: Any, place: tuple[Any, ...], value: Any) -> Any:
    """A copy of a document with another value in one place."""
    if not place:
        return value
    document = copy.deepcopy(document)
    target = document
    for key in place[:-1]:
        target = target[key]
    target[place[-1]] = value
    return document


@st.composite
def mutated(draw: st.DrawFn, document: Any, values: st.SearchStrategy[Any] = VALUES) -> Any:
    """A document with one value or several exchanged, taken out, or added under a new key."""
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.sampled_from(list(places(document))))
        kind = draw(st.sampled_from(("exchange", "exchange", "exchange", "remove", "add")))
        parent: Any = document
        for key in place[:-1]:
            parent = parent[key]
        if kind == "remove" and place:
            document = copy.deepcopy(document)
            parent = document
            for key in place[:-1]:
                parent = parent[key]
            del parent[place[-1]]
        elif kind == "add" and isinstance(parent, dict) and place:
            document = with_value(document, (*place[:-1], draw(TEXT)), draw(values))
        else:
            document = with_value(document, place, draw(values))
    return document


def as_json(value: Any) -> str:
    """JSON as Python writes it: with NaN, and lone surrogates as escapes."""
    return json.dumps(value)

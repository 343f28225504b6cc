"""The tests of `test_fuzz` with 20,000 cases; run by `make soak`, or with the path of this file."""

import os

os.environ.setdefault("FUZZ_CASES", "20000")

from tests.test_fuzz import *  # noqa: F403 - its tests and fixtures, collected here

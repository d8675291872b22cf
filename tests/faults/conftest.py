"""How many cases the fuzzing takes."""

from __future__ import annotations

from hypothesis import settings

# Ten thousand over the tests of test_fuzz.py, of which each takes its share.
settings.register_profile("fuzz", max_examples=2_500)

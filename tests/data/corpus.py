"""The real images that ``DEXCORE_CORPUS`` names; .ci/run sets it where they are at hand."""

import os
from pathlib import Path

import pytest

CORPUS = Path(os.environ.get("DEXCORE_CORPUS", "no corpus"))
needs_corpus = pytest.mark.skipif(not CORPUS.is_dir(), reason="needs the corpus of real images (DEXCORE_CORPUS)")

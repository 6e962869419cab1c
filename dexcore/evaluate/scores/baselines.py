"""Who is a baseline, by its name."""

import re

MAJORITY = "majority"
HISTOGRAM = "histogram"
RANDOM = "-random"  # the end of the name of an architecture with new weights
_BASELINE = re.compile(rf"(?:{MAJORITY}|(?:{HISTOGRAM}|.*{RANDOM})(?: (?:knn|linear|dense)(?:, drawn)?)?)")


def is_baseline(model: str) -> bool:
    """Whether a name, as scores have it, is that of what a number must beat: it has learned nothing."""
    return _BASELINE.fullmatch(model) is not None

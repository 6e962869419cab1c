"""The benches stand at the top of the repository and are not installed."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2]))

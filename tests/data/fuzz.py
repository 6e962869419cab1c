"""Mutations of real files, read in a process of their own: a reader may refuse, but not crash, hang or take memory."""

import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

_CHILD = """
import resource, sys, time
from pathlib import Path
from dexcore.data.readers import UnreadableFileError, read_file
{reading}
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
for path in sys.argv[2:]:
    read(Path(path))
idle = peak()
for path in sorted(Path(sys.argv[1]).iterdir()):
    print(path.name, end=" ", flush=True)
    start = time.monotonic()
    try:
        read(path)
        print("read")
    except UnreadableFileError as error:
        assert error.reason
        print("refused")
    assert time.monotonic() - start < 5, "more than 5 s"
    assert peak() - idle < 1024, "more than 1 GiB"
"""


def mutations(data: bytes, count: int) -> list[bytes]:
    """Bytes flipped, numbers put to their extremes, cut, doubled, zeroed; half of it within the first 512 bytes."""
    rng = np.random.default_rng(0)
    made = []
    for _ in range(count):
        changed = bytearray(data)
        for _ in range(rng.integers(1, 5)):
            at = int(rng.integers(0, min(512, len(changed)) if rng.random() < 0.5 else len(changed)))
            match rng.choice(6, p=[0.2, 0.2, 0.2, 0.2, 0.15, 0.05]):
                case 0 | 1:
                    changed[at] = rng.integers(0, 256)
                case 2:
                    extreme = (b"\xff\xff\xff\xff", b"\0\0\0\x80", b"\xff\xff\xff\x7f", b"\0\0\0\0")
                    changed[at : at + 4] = extreme[rng.integers(0, 4)]
                case 3:
                    changed[at : at + 1] = b"%d" % rng.integers(0, 10**9)  # what headers of text stumble over
                case 4:
                    changed[at:at] = changed[at : at + int(rng.integers(1, 64))]
                case 5:
                    del changed[at + 1 if rng.random() < 0.3 else max(1, len(changed) - 64) :]
        made.append(bytes(changed))
    return made


def read_mutations(
    sources: Sequence[Path], folder: Path, count: int, reading: str = "read = read_file"
) -> dict[str, Counter[str]]:
    """Read ``count`` mutations of each file in one new process, each within 5 s and 1 GiB above the idle reader.

    Args:
        sources: whole files.
        folder: an empty one, for the mutations.
        count: of each file.
        reading: program text that defines ``read(path)``.

    Returns:
        for each source's name, how many were "read" and how many "refused".
    """
    for source in sources:
        for number, data in enumerate(mutations(source.read_bytes(), count)):
            (folder / f"{source.stem}-{number:05d}{source.suffix}").write_bytes(data)
    child = [sys.executable, "-c", _CHILD.format(reading=reading), folder, *sources]
    done = subprocess.run(child, capture_output=True, text=True, timeout=60 + count * len(sources), check=False)
    assert done.returncode == 0, f"{done.stdout[-200:]}\n{done.stderr[-2000:]}"
    assert not done.stderr, done.stderr[-2000:]
    outcomes = [line.split(" ") for line in done.stdout.splitlines()]
    assert len(outcomes) == count * len(sources)
    return {
        source.name: Counter(
            outcome for name, outcome in outcomes if name.startswith(f"{source.stem}-") and name.endswith(source.suffix)
        )
        for source in sources
    }

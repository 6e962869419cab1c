"""The files of a run folder that the report reads and writes, and a write that is whole or not at all."""

import os
from pathlib import Path

METRICS_FILE = "metrics.jsonl"
CONFIG_FILE = "config.yaml"
EVALUATION_FILE = "evaluation.npz"
SUMMARY_FILE = "summary.json"
REPORT_FILE = "report.html"
PICTURES_FOLDER = "report"
MODEL_FOLDER = "model"


def run_files(run_folder: str | Path) -> dict[str, Path]:
    """What a person looks for in a run folder: name -> path."""
    folder = Path(run_folder)
    return {
        "report": folder / REPORT_FILE,
        "pictures": folder / PICTURES_FOLDER,
        "model": folder / MODEL_FOLDER,
        "metrics": folder / METRICS_FILE,
        "summary": folder / SUMMARY_FILE,
    }


def write_whole(path: Path, content: bytes) -> None:
    """Write to a temporary name beside ``path``, sync, rename: a kill leaves the old file or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:  # a full disk does not say which file it was
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)

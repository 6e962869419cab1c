"""The files of a run folder, and whether a process writes into it."""

from pathlib import Path

METRICS_FILE = "metrics.jsonl"
SIMILARITY_FILE = "similarity.jsonl"
PROBE_FILE = "probe.jsonl"
HELDOUT_FILE = "heldout.jsonl"
SKIPPED_FILE = "skipped.jsonl"
STARTS_FILE = "starts.jsonl"
CONFIG_FILE = "config.yaml"
COMPARISON_FILE = "comparison.json"
EVALUATION_FILE = "evaluation.npz"
ANALYSIS_FILE = "analysis.npz"
STEP0_EVALUATION_FILE = "evaluation_step0.npz"
STEP0_ANALYSIS_FILE = "analysis_step0.npz"
SUMMARY_FILE = "summary.json"
REPORT_FILE = "report.html"
PICTURES_FOLDER = "report"
MODEL_FOLDER = "model"
BEST_FOLDER = "model-best"
AVERAGED_FOLDER = "model-ema"
CHECKPOINTS_FOLDER = "checkpoints"
LOCK_FILE = ".lock"  # held by the process that trains


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


def is_held(folder: Path) -> bool:
    """Whether a process is writing into the run's folder (it holds a lock for as long as it lives)."""
    try:
        import fcntl  # POSIX alone

        with open(folder / LOCK_FILE, "rb") as lock:
            fcntl.lockf(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except (ImportError, FileNotFoundError):
        return False
    except OSError:  # EAGAIN or EACCES
        return True
    return False

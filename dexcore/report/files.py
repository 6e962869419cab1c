"""The files of a run folder that the report reads and writes."""

from pathlib import Path

METRICS_FILE = "metrics.jsonl"
SIMILARITY_FILE = "similarity.jsonl"
PROBE_FILE = "probe.jsonl"
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

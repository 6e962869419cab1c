"""What a run learned: measures, pictures and one page, all made from the numbers that a run folder holds.

The page of a store of images is made by `dexcore.report.store_page`.
"""

from dexcore.report.analysis import Analysis
from dexcore.report.evaluation import Evaluation, Examples
from dexcore.report.files import run_files
from dexcore.report.numbers import RunNumbers
from dexcore.report.page import build_report
from dexcore.report.summary import Summary, summarize
from dexcore.report.unfinished import Unfinished, is_unfinished, report_unfinished

__all__ = [
    "Analysis",
    "Evaluation",
    "Examples",
    "RunNumbers",
    "Summary",
    "Unfinished",
    "build_report",
    "is_unfinished",
    "report_unfinished",
    "run_files",
    "summarize",
]

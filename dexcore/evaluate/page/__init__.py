"""The evaluation page: what lies in folders of scores becomes `dexcore.report`'s page."""

from dexcore.evaluate.page.gather import evaluation_page

__all__ = ["evaluation_page"]

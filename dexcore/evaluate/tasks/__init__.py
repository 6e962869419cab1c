"""Tasks: one YAML and one table each, read, checked and made."""

from dexcore.evaluate.tasks.spec import Spec, TaskError
from dexcore.evaluate.tasks.table import Row
from dexcore.evaluate.tasks.task import Reference, Task, TestLabelsError

__all__ = ["Reference", "Row", "Spec", "Task", "TaskError", "TestLabelsError"]

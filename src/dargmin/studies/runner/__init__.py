"""Studies as tables: describe one, run what is missing of it, read what it found."""

from dargmin.studies.runner.code import fingerprint, task_key
from dargmin.studies.runner.schedule import Interrupted, Outcome, run_tasks
from dargmin.studies.runner.store import Store, Task
from dargmin.studies.runner.study import (
    HOLDS,
    LIMITS,
    MISSED,
    Figure,
    Frame,
    Parameters,
    Study,
    Table,
    Verdict,
)

__all__ = [
    "HOLDS",
    "LIMITS",
    "MISSED",
    "Figure",
    "Frame",
    "Interrupted",
    "Outcome",
    "Parameters",
    "Store",
    "Study",
    "Table",
    "Task",
    "Verdict",
    "fingerprint",
    "run_tasks",
    "task_key",
]

"""Part files: one Parquet file for each finished task, there whole or not at all."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from dargmin.studies.errors import DataError
from dargmin.studies.runner.code import task_key
from dargmin.studies.runner.study import Parameters, Study, Table

__all__ = ["Store", "Task", "as_frame"]


@dataclass(frozen=True)
class Task:
    """One call of a study's `run`."""

    study: Study
    parameters: Parameters

    @property
    def key(self) -> str:
        return task_key(self.study.name, self.parameters, self.study.run)

    @property
    def label(self) -> str:
        values = ", ".join(f"{name}={value}" for name, value in self.parameters.items())
        return f"{self.study.name}({values})"


@dataclass(frozen=True)
class Store:
    """The results of studies under one directory."""

    directory: Path

    def path(self, task: Task) -> Path:
        return self.directory / "studies" / task.study.name / f"{task.key}.parquet"

    def tasks(self, study: Study, quick: bool) -> list[Task]:
        return [Task(study, parameters) for parameters in study.tasks(quick)]

    def missing(self, study: Study, quick: bool) -> list[Task]:
        """The tasks without a result of the code as it is now."""
        return [task for task in self.tasks(study, quick) if not self.path(task).is_file()]

    def write(self, task: Task, table: Table, seconds: float) -> Path:
        """Write a result under another name, and rename it when it is on the disk."""
        path = self.path(task)
        path.parent.mkdir(parents=True, exist_ok=True)
        about = {"parameters": task.parameters, "seconds": seconds}
        arrow = pa.Table.from_pandas(as_frame(table, task.parameters), preserve_index=False)
        arrow = arrow.replace_schema_metadata(
            {**(arrow.schema.metadata or {}), b"dargmin": json.dumps(about).encode()}
        )
        for left_over in path.parent.glob(f".{task.key}.*.tmp"):
            left_over.unlink(missing_ok=True)
        temporary = path.parent / f".{task.key}.{os.getpid()}.tmp"
        with temporary.open("wb") as file:
            pq.write_table(arrow, file, compression="zstd")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        return path

    def read(self, study: Study, quick: bool = False) -> pd.DataFrame:
        """All results of a study, one after the other.

        Raises
        ------
        DataError
            If a task has not been run."""
        tasks = self.tasks(study, quick)
        missing = sum(not self.path(task).is_file() for task in tasks)
        if missing:
            raise DataError(
                f"{missing} of {len(tasks)} tasks of the study '{study.name}' have no result in "
                f"{self.directory}: dargmin study run {study.name}{' --quick' if quick else ''}"
            )
        parts = [pq.read_table(self.path(task)).to_pandas() for task in tasks]
        return pd.concat(parts, ignore_index=True)

    def seconds(self, study: Study, quick: bool = False) -> float:
        """How long the tasks that are done took, all together."""
        paths = [self.path(task) for task in self.tasks(study, quick)]
        metadata = [pq.read_schema(path).metadata for path in paths if path.is_file()]
        return sum(json.loads(about[b"dargmin"])["seconds"] for about in metadata)


def as_frame(table: Table, parameters: Parameters) -> pd.DataFrame:
    """The table with a column for each parameter that is a number or a word."""
    plain = {k: v for k, v in parameters.items() if isinstance(v, str | int | float | bool)}
    return pd.DataFrame({**{k: v for k, v in plain.items() if k not in table}, **table})

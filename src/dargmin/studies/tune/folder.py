"""The directory of a run: written file by file, each there whole or not at all."""

import io
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import joblib
import pandas as pd
from matplotlib.figure import Figure

from dargmin.studies.errors import DataError

__all__ = ["FINISHED", "INTERRUPTED", "RUNNING", "Folder", "write_atomically"]

RUNNING, INTERRUPTED, FINISHED = "running", "interrupted", "finished"


@dataclass(frozen=True)
class Folder:
    """Where a run leaves its model, tables, figures and summary."""

    path: Path

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def begin(self, about: dict[str, Any], resume: bool) -> bool:
        """Claim the directory for a run; False if that run has been finished.

        Raises
        ------
        DataError
            If there is a run already, or on `resume` a different one."""
        before = self.read() if (self.path / "run.json").exists() else None
        if before is not None:
            if not resume:
                ended = before.get("status") == FINISHED
                raise DataError(
                    f"{self.path} holds {'a' if ended else 'an unfinished'} run already: "
                    f"{'' if ended else 'say --resume to go on with it, or '}name another --out."
                )
            for name in ("arguments", "data"):
                _require_same(self.path, before.get(name, {}), about[name])
            if before.get("status") == FINISHED:
                return False
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        self.write_about({**about, "status": RUNNING})
        return True

    def read(self) -> dict[str, Any]:
        """What run.json says.

        Raises
        ------
        DataError
            If there is no run."""
        try:
            return json.loads((self.path / "run.json").read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            raise DataError(f"{self.path} holds no run of dargmin tune: check the path.") from None
        except (OSError, ValueError) as error:
            raise DataError(f"{self.path / 'run.json'} cannot be read ({error}).") from None

    def write_about(self, about: dict[str, Any]) -> Path:
        text = json.dumps(about, indent=2, ensure_ascii=False) + "\n"
        return write_atomically(self.path / "run.json", text.encode())

    def write_model(self, pipeline: Any) -> Path:
        file = io.BytesIO()
        joblib.dump(pipeline, file, compress=3)
        return write_atomically(self.path / "model.joblib", file.getvalue())

    def read_model(self) -> Any:
        """The fitted pipeline. Like every pickle, it can run code when it is loaded.

        Raises
        ------
        DataError
            If there is none yet."""
        try:
            return joblib.load(self.path / "model.joblib")
        except FileNotFoundError:
            raise DataError(
                f"{self.path} holds no model yet: finish its run with dargmin tune ... --resume."
            ) from None

    def write_table(self, name: str, table: pd.DataFrame) -> Path:
        text = table.to_csv(index=False)
        return write_atomically(self.path / name, text.encode())

    def write_figure(self, name: str, figure: Figure) -> Path:
        return write_atomically(self.path / name, png(figure))

    def close(self) -> None:
        """Forget what only a resumption needs."""
        shutil.rmtree(self.checkpoints, ignore_errors=True)


def png(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


def write_atomically(path: Path, content: bytes) -> Path:
    """Write under another name, and rename."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    return path


def _require_same(path: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    for name, value in now.items():
        if before.get(name) != value:
            option = "the table" if name == "key" else f"--{name.replace('_', '-')}"
            was = "has changed" if name == "key" else f"was {before.get(name)}, and is {value}"
            raise DataError(
                f"--resume cannot go on with {path}: {option} {was}. Give the same, or name "
                "another --out."
            )

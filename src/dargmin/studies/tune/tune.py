"""Tune a model on a table, compare it, and leave all of it in a directory."""

import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from platform import python_version
from typing import Any

import numpy as np
import pandas as pd
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import KFold, StratifiedKFold
from sklearn.pipeline import Pipeline

from dargmin.studies.errors import DataError
from dargmin.studies.tune.compare import Rival, compared, rivals, with_one_penalty
from dargmin.studies.tune.encoding import Encoded, encode, read_groups
from dargmin.studies.tune.figures import figures
from dargmin.studies.tune.folder import FINISHED, INTERRUPTED, Folder, write_atomically
from dargmin.studies.tune.options import MODELS, Options
from dargmin.studies.tune.page import page
from dargmin.studies.tune.result import Found
from dargmin.studies.tune.table import Split, read_split
from dargmin.studies.tune.watch import Watch

__all__ = ["Run", "tune"]

Advance = Callable[[str, float], None]


@dataclass(frozen=True)
class Run:
    """What became of a run: its result, None if there is none, and the files that it left."""

    found: Found | None
    files: list[Path]
    interrupted: bool


def tune(
    source: str, target: str | None, options: Options, out: Path, *, resume: bool = False,
    advance: Advance = lambda what, share: None,
) -> Run:  # fmt: skip
    """Tune, and write model, tables, figures and summary to the directory `out`.

    On Ctrl-C what was learnt so far is written.

    Parameters
    ----------
    source : str
        A built-in data set, or the path of a CSV, Parquet or libsvm file.
    target : str, optional
        The column to predict; required for CSV and Parquet.
    options : Options
    out : Path
        An existing directory.
    resume : bool
        Go on with the run that is there.
    advance : callable (what is done, share that is done)

    Raises
    ------
    DataError
        If the data, or the run that is there, cannot be used; nothing is changed then."""
    advance("reading the table", 0.0)
    split, folder = read_split(source, target, options), Folder(out)
    encoded = encode(split)
    groups = read_groups(options.groups, encoded)
    about = _about(source, split, encoded.words, options)
    if not folder.begin(about, resume):
        return Run(None, [], False)
    job = _Job(split, encoded, groups, options, folder, advance)
    model, notes, seconds, interrupted = job.fit()
    about |= {"fit_seconds": seconds, "status": INTERRUPTED}
    if "coef_" not in vars(model):
        return Run(None, [folder.write_about(about)], True)
    pipeline = Pipeline([*encoded.pipeline.steps, ("model", model)])
    folder.write_model(pipeline)
    others = []
    if not interrupted and len(split.y_test):
        others, interrupted = job.rivals(model)
    about["status"] = INTERRUPTED if interrupted else FINISHED
    found = job.found(model, others, {**about, **_learnt(model)}, notes)
    files = _write(folder, found, advance)
    if not interrupted:
        folder.close()
    return Run(found, files, interrupted)


@dataclass(frozen=True)
class _Job:
    split: Split
    encoded: Encoded
    groups: list[str]
    options: Options
    folder: Folder
    advance: Advance

    @property
    def folds(self) -> list:
        kind = StratifiedKFold if self.options.classifies else KFold
        folds = kind(self.options.cv, shuffle=True, random_state=self.options.seed)
        return list(folds.split(self.encoded.X, self.split.y))

    @property
    def watch(self) -> Watch:
        stages = 1 if self.options.penalty == "scalar" else 2 + 2 * self.options.cv
        path = self.folder.checkpoints / "penalties.csv"
        return Watch(path, stages, lambda what, share: self.advance(what, 0.05 + 0.75 * share))

    def fit(self) -> tuple[Any, list[str], float, bool]:
        """The tuned model, warnings, seconds, and whether it was interrupted."""
        model = MODELS[self.options.model](
            penalty=self.options.penalty, cv=self.folds, max_iter=self.options.max_iter,
            groups=np.asarray(self.groups) if self.options.penalty == "group" else None,
            checkpoint=self.folder.checkpoints, verbose=self.watch,
        )  # fmt: skip
        self.advance("compiling", 0.05)
        before, begin = self.folder.read().get("fit_seconds", 0.0), time.perf_counter()
        interrupted, notes = False, []
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always", ConvergenceWarning)
                model.fit(self.encoded.X, self.split.y)
            notes = [str(w.message) for w in caught if w.category is ConvergenceWarning]
        except KeyboardInterrupt:
            interrupted = True
        except ValueError as error:
            if "checkpoint=" not in str(error):
                raise
            raise DataError(str(error)) from None
        model.set_params(cv=self.options.cv, checkpoint=None, verbose=False)
        return model, notes, before + time.perf_counter() - begin, interrupted

    def rivals(self, model: Any) -> tuple[list[Rival], bool]:
        """The models to compare with, and whether that was interrupted."""
        X, y, found = self.encoded.X, self.split.y, []
        self.advance("fitting the models to compare with", 0.8)
        try:
            found.extend(rivals(self.options.model, self.folds, X, y))
            penalties = self.watch.thetas("scalar", self._rows)
            if model.separate_ and len(penalties):
                seconds = float(model.history_["time"][model.history_["stage"] == "scalar"][-1])
                common = np.exp(penalties[-1, :, 0])
                found.append(with_one_penalty(self.options.model, common, X, y, seconds))
        except KeyboardInterrupt:
            return found, True
        return found, False

    @property
    def _rows(self) -> int:
        """How many penalties a feature has: of both norms, or of one."""
        return 2 if self.options.model == "elastic-net" else 1

    def found(
        self, model: Any, others: list[Rival], about: dict[str, Any], notes: list[str]
    ) -> Found:
        split = self.split
        comparison = []
        if len(split.y_test):
            label = "separate penalties, tuned" if model.separate_ else "one penalty, tuned"
            comparison = compared(
                Rival(label, model, about["fit_seconds"]), others, self.encoded.X_test,
                split.y_test, self.options.classifies,
            )  # fmt: skip
            about |= {"comparison": [asdict(row) for row in comparison]}
        path, shared = self._path()
        return Found(
            title=f"{split.target} of {split.name}",
            model=model,
            features=[str(name) for name in self.encoded.X.columns],
            columns=self.encoded.columns,
            groups=self._own_groups(),
            path=path,
            shared=shared,
            comparison=comparison,
            notes=[*split.notes, *self.encoded.notes, *notes],
            about=about,
        )

    def _own_groups(self) -> list[str]:
        features = [str(name) for name in self.encoded.X.columns]
        kinds = {"scalar": ["all"] * len(features), "feature": features, "group": self.groups}
        return kinds[self.options.penalty]

    def _path(self) -> tuple[np.ndarray, int]:
        """Penalties after each step, in the units of the model, and how many are common ones."""
        weight = 1 if self.options.model == "elastic-net" else len(self.split.y)
        stages = [self.watch.thetas(stage, self._rows) for stage in ("scalar", "separate")]
        # not yet there, or the only one
        widest = max(stage.shape[2] for stage in stages)
        sums = [weight * np.exp(s).sum(axis=1).reshape(len(s), widest) for s in stages]
        # the estimators leave room for more
        return np.concatenate(sums)[:, : len(set(self._own_groups()))], len(sums[0])


def _about(source: str, split: Split, words: list[str], options: Options) -> dict[str, Any]:
    """What was asked for, on what, with what."""
    path = Path(source).expanduser()
    packages = ("dargmin", "jax", "numpy", "scikit-learn")
    return {
        "arguments": {
            "table": str(path.resolve()) if path.exists() else source,
            "target": split.target,
            **asdict(options),
        },
        "data": {"key": split.key},
        "rows": {"learnt from": len(split.y), "held out": len(split.y_test)},
        "columns": {"numbers": split.numbers, "words": words},
        "versions": {"python": python_version(), **{name: version(name) for name in packages}},
    }


def _learnt(model: Any) -> dict[str, Any]:
    losses = model.guard_losses_
    return {
        "validation_loss": model.value_,
        "outer_steps": model.n_iter_,
        "separate": model.separate_,
        "guard_losses": None if losses is None else losses.tolist(),
        "certificate": model.certificate_._asdict(),
    }


def _write(folder: Folder, found: Found, advance: Advance) -> list[Path]:
    """All but the model; run.json, which says what there is, last."""
    advance("drawing", 0.95)
    files = [
        folder.path / "model.joblib",
        folder.write_table("coefficients.csv", found.coefficients()),
        folder.write_table("history.csv", pd.DataFrame(found.model.history_)),
    ]
    light, dark = figures(found), figures(found, dark=True)
    files += [folder.write_figure(f"{name}.png", figure) for name, figure in light.items()]
    text = page(found, light, dark)
    files.append(write_atomically(folder.path / "summary.html", text.encode()))
    files.append(folder.write_about(found.about))
    return files

"""Learn penalties by hypergradients of the validation loss: one for all, then one for each.

1. One penalty for all features: the best of a few, then L-BFGS-B from there.
2. One for each feature or group, from there, with a mild pull back: L-BFGS-B on
   validation loss + ½ τ mean (θ - θ₀)².
3. The guard: for each fold, 1 and 2 without it, each step of 2 judged by its loss. 2 is then
   run on all folds for as many steps as were best on average, which may be none.

All stages have the same shapes, so that they share one compiled program."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from dargmin import bilevel
from dargmin.bilevel.history import COLUMNS
from dargmin.estimators.design import Design, padded
from dargmin.estimators.folds import Folds
from dargmin.estimators.posing import Posed, pose
from dargmin.linear import Auto
from dargmin.modes import Implicit
from dargmin.status import Status

STRONGEST, WEAKEST = 1e4, 1e-7
"""Bounds of the squared-norm penalty, relative to the mean square of a feature."""

SPARSEST, DENSEST = 1.0, 1e-5
"""Bounds of the l1 penalty, relative to the one that switches everything off."""

CANDIDATES = 8
"""Penalties of which the first stage starts from the best."""

PATIENCE = 10
"""Steps without a new lowest loss, after which a run of the guard ends."""

EXACT = np.asarray(1e-12)
"""Relative residual of the linear solves of the final fit."""

WORSE = 1.1
"""Times the best loss: after two candidates in a row above that, weaker ones are not tried."""

FTOL = 1e-9
"""A stage ends where a step lowers the validation loss by less than that, relatively."""


@dataclass(frozen=True)
class Request:
    """What is to be learnt.

    Attributes
    ----------
    groups : integer array, shape (d,)
        The group of each feature, 0, 1, ...; each group has a penalty of its own.
    ratio : float or None
        The share ρ of the l1 norm, as in scikit-learn; None to learn both penalties.
    steps : int
        Outer steps of a stage, at most.
    pull : float
        τ, relative to the validation loss at one penalty for all.
    guard : bool
    checkpoint : Path or None
        A directory where each stage leaves a file, and goes on from it."""

    groups: Int[np.ndarray, " d"]
    ratio: float | None
    steps: int
    pull: float
    guard: bool
    checkpoint: Path | None = None

    @property
    def count(self) -> int:
        """How many penalties there are."""
        return int(self.groups.max(initial=0)) + 1

    @property
    def room(self) -> int:
        """Columns of θ; those beyond `count` change nothing."""
        return 1 if self.count == 1 else padded(self.count)


@dataclass(frozen=True)
class Tuned:
    """What was learnt: θ = log penalty of the mean loss, in the units of the table.

    `x` is the fit to all rows; `coefficient_error` the last change of it relative to its size;
    `guard_losses` the mean loss of the rows that were left out, after each step of stage 2;
    `slope` and `slope_error` the norm of the gradient at θ, on the bounds too, and its certified
    absolute error."""

    theta: Float[np.ndarray, "r p"]
    x: Float[np.ndarray, "d m"]
    value: float
    status: Any
    slope: float
    slope_error: float
    gradient_norm: float
    coefficient_error: float
    guard_losses: Float[np.ndarray, " steps"] | None
    stage: str
    history: dict[str, np.ndarray]


class Tuner:
    """One table, its folds, and what is known so far.

    `report(stage, solution)` is called after each outer step."""

    def __init__(
        self, design: Design, folds: Folds, request: Request, report: Callable | None = None
    ):
        self.design, self.folds, self.request, self.report = design, folds, request, report
        self.lower, self.upper = self._bounds()
        self.best: tuple[str, bilevel.BilevelSolution] | None = None
        self.history: list[tuple[str, np.ndarray]] = []

    def run(self) -> Tuned:
        """All stages. Ctrl-C is raised again, with what was learnt as its `result`."""
        try:
            return self._run()
        except KeyboardInterrupt as interrupt:
            if self.best is not None:
                interrupt.result = self._finish(None)  # pyright: ignore[reportAttributeAccessIssue]
            raise

    def _run(self) -> Tuned:
        one = self._stage("scalar", self.folds, self._best_candidate())
        if self.request.count == 1:
            return self._finish(None)
        losses = self._guard(one) if self.request.guard else None
        steps = self.request.steps if losses is None else int(np.argmin(losses))
        if steps > 0:
            self._stage("separate", self.folds, one, steps=steps)
        return self._finish(losses)

    def _guard(self, start: bilevel.BilevelSolution) -> Float[np.ndarray, " steps"] | None:
        """The mean loss of rows whose fold took no part in learning the penalties, after 0, 1, ...
        steps of learning separate ones; None if there are too few folds."""
        paths, weights = _read(self._file("guard.json"))
        for j in range(len(paths), self.folds.count):
            without = self.folds.without(j)
            if without is None:
                return None
            judge = _Judge(self.design, self.folds.only(j))
            one = self._stage(f"guard {j + 1}, scalar", without, start)
            judge(one)
            self._stage(f"guard {j + 1}, separate", without, one, judge=judge)
            paths.append(judge.losses)
            weights.append(judge.weight)
            _write(self._file("guard.json"), (paths, weights))
        longest = max(len(path) for path in paths)
        # A run that has ended stays where it is.
        table = [path + [path[-1]] * (longest - len(path)) for path in paths]
        return np.average(table, axis=0, weights=weights)

    def _best_candidate(self) -> bilevel.BilevelSolution:
        """From strong to weak, each solve starting at the one before; the weakest take longest."""
        shift = np.linspace(0.15, 0.75, CANDIDATES)
        lower, upper = self._shared(self.lower, np.min), self._shared(self.upper, np.max)
        best, x, worse = None, None, 0
        for share in shift:
            theta = upper + share * (lower - upper)
            if len(theta) == 2:  # l1 decides, with a little of the other for a unique minimum
                theta[1] = self._shared(self.lower[1:], np.median)[0] + np.log(1e4)
            found = self._minimize("", self.folds, theta, x, shared=True, steps=0)
            x = found.x
            if best is None or not found.value >= best.value:
                best = found
            worse = worse + 1 if found.value > WORSE * best.value else 0
            if worse == 2:
                break
        assert best is not None
        return best

    def _stage(
        self, name: str, folds: Folds, start: bilevel.BilevelSolution, *,
        steps: int | None = None, judge: Callable | None = None,
    ) -> bilevel.BilevelSolution:  # fmt: skip
        """L-BFGS-B from where `start` ended."""
        shared = name.endswith("scalar")
        theta = np.asarray(start.theta)
        steps = self.request.steps if steps is None else steps
        pull = 0.0 if shared else self.request.pull * float(start.value) / self.request.count
        try:
            found = self._minimize(
                name, folds, theta, start.x, shared=shared, steps=steps, pull=pull, judge=judge
            )
        except KeyboardInterrupt as interrupt:
            self._keep(name, getattr(interrupt, "result", None))
            raise
        self._keep(name, found)
        return found

    def _keep(self, name: str, found: bilevel.BilevelSolution | None) -> None:
        if found is None:
            return
        self.history.append((name, found.history.rows()))
        if name in ("scalar", "separate"):
            self.best = name, found

    def _minimize(
        self, name: str, folds: Folds, theta: Any, x: Any, *, shared: bool, steps: int,
        pull: float = 0.0, rtol: float | None = None, judge: Callable | None = None,
    ) -> bilevel.BilevelSolution:  # fmt: skip
        if shared:
            theta = np.broadcast_to(theta[:, :1], self.lower.shape)
            bounds = self._shared(self.lower, np.min), self._shared(self.upper, np.max)
        else:
            bounds = self.lower, self.upper
        theta = np.clip(theta, *bounds)
        posed = self._pose(folds, theta, shared, pull)
        solution = bilevel.minimize(
            posed.outer, posed.problem, posed.zero if x is None else x, jnp.asarray(theta),
            optimizer=bilevel.LBFGSB(ftol=FTOL), steps=steps,
            rtol="adaptive" if rtol is None else rtol,
            mode=Implicit(Auto(blocks=folds.count + 1), rtol=None if rtol is None else EXACT),
            bounds=tuple(jnp.asarray(b) for b in bounds), throw=False,
            callback=self._callback(name, judge), checkpoint=self._checkpoint(name),
        )  # fmt: skip
        if not shared:
            return solution
        same = np.broadcast_to(np.asarray(solution.theta)[:, :1], self.lower.shape)
        return eqx.tree_at(lambda s: s.theta, solution, same)

    def _pose(self, folds: Folds, theta: Any, shared: bool, pull: float) -> Posed:
        groups = self.request.groups * (not shared)
        return pose(
            self.design, folds, groups, self.request.ratio, center=np.asarray(theta), pull=pull
        )

    def _finish(self, losses: Float[np.ndarray, " steps"] | None) -> Tuned:
        """The fit at the best penalties, as exact as it gets."""
        assert self.best is not None
        stage, found = self.best
        theta, x, change = np.asarray(found.theta), found.x, np.inf
        for _ in range(4):
            exact = self._minimize(
                "", self.folds, theta, x, shared=stage == "scalar", steps=0, rtol=1e-6
            )
            before, x = np.asarray(x[-1]), exact.x
            after = np.asarray(x[-1])
            size = np.max(np.abs(after), initial=0.0)
            change = float(np.max(np.abs(after - before), initial=0.0) / (size or 1.0))
            if change <= 1e-9:
                break
        return Tuned(
            theta=theta,
            x=np.asarray(x[-1]),
            value=float(exact.value),
            status=self._status(found),
            slope=float(np.linalg.norm(np.asarray(exact.gradient))),
            slope_error=float(exact.error),
            gradient_norm=_last(found.history["gradient_norm"]),
            coefficient_error=change,
            guard_losses=losses,
            stage=stage,
            history=_as_columns(self.history),
        )

    def _status(self, found: bilevel.BilevelSolution) -> Any:
        """Spending the steps that the guard allows is what was wanted."""
        early = len(found.history) <= self.request.steps
        spent = bool(found.status == Status.steps_spent)
        return Status.ok if spent and early else found.status

    def _bounds(self) -> tuple[Float[np.ndarray, "r p"], Float[np.ndarray, "r p"]]:
        """Of θ, for each group from the features in it."""
        squares = self.design.scale**2
        off = np.max(np.abs(self.design.gradient_at_zero()), axis=1, initial=0.0)
        off = np.maximum(off * self.design.scale, 1e-12) * self.design.unit
        pure = 1.0 if self.request.ratio is None else max(self.request.ratio, 1e-3)
        l2 = self._extremes(squares * WEAKEST, squares * STRONGEST)
        l1 = self._extremes(off * DENSEST / pure, off * SPARSEST / pure)
        if self.request.ratio is None:
            return np.stack([l1[0], l2[0]]), np.stack([l1[1], l2[1]])
        chosen = l2 if self.request.ratio == 0 else l1
        return chosen[0][None], chosen[1][None]

    def _extremes(self, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        lower, upper = np.full(self.request.room, np.inf), np.full(self.request.room, -np.inf)
        np.minimum.at(lower, self.request.groups, np.log(low))
        np.maximum.at(upper, self.request.groups, np.log(high))
        idle = lower > upper
        return np.where(idle, lower[0], lower), np.where(idle, upper[0], upper)

    def _shared(self, bound: Float[np.ndarray, "r p"], extreme: Callable) -> np.ndarray:
        return np.repeat(extreme(bound, axis=1, keepdims=True), bound.shape[1], axis=1)

    def _callback(self, name: str, judge: Callable | None) -> Callable | None:
        report = self.report if name else None

        def callback(solution: bilevel.BilevelSolution) -> None:
            if report is not None:
                report(name, solution)
            if judge is not None and len(solution.history) > 1:
                judge(solution)

        return None if report is judge is None else callback

    def _checkpoint(self, name: str) -> Path | None:
        # Of the guard, whole folds are kept: what judges a run has to see all of it.
        return self._file(f"{name}.npz") if name in ("scalar", "separate") else None

    def _file(self, name: str) -> Path | None:
        directory = self.request.checkpoint
        return None if directory is None else directory / name


class _Judge:
    """The losses of one fold along a run; ends the run where they have stopped to fall."""

    def __init__(self, design: Design, folds: Folds):
        _, self.loss, self.factor = design.losses(folds)
        self.weight = float(folds.weights(design.weight)[1].sum())
        self.losses: list[float] = []

    def __call__(self, solution: bilevel.BilevelSolution) -> None:
        self.losses.append(self.factor * float(_loss(self.loss, solution.x)))
        if len(self.losses) - int(np.argmin(self.losses)) > PATIENCE:
            raise StopIteration


@eqx.filter_jit
def _loss(loss: Any, x: Any) -> Any:
    return loss(x)


def _read(path: Path | None) -> tuple[list, list]:
    """The losses and the weights of the folds that the guard is done with."""
    if path is None or not path.exists():
        return [], []
    paths, weights = json.loads(path.read_text(encoding="utf-8"))
    return paths, weights


def _write(path: Path | None, losses: tuple[list, list]) -> None:
    if path is None:
        return
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(losses), encoding="utf-8")
    os.replace(temporary, path)


def _last(column: Float[np.ndarray, " rows"]) -> float:
    """Of a history, which is empty where the first evaluation failed."""
    return float(column[-1]) if len(column) else np.nan


def _as_columns(parts: list[tuple[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The histories of all stages below each other, with a column that names the stage."""
    stages = np.concatenate([np.full(len(rows), name, object) for name, rows in parts])
    table = np.concatenate([rows for _, rows in parts])
    return {"stage": stages.astype(str)} | dict(zip(COLUMNS, table.T, strict=True))

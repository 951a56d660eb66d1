"""plan: which method, which mode, how many steps; and why."""

import math
from dataclasses import dataclass

from dargmin import tree
from dargmin.candidates import (
    Choice,
    Pilot,
    candidates,
    first_accurate,
    in_bytes,
    in_words,
    name,
    root_finder,
)
from dargmin.checks import blames_arguments
from dargmin.diagnose import settled
from dargmin.linear import LinearOptions
from dargmin.methods import ConjugateGradient, FromOptimistix, NewtonCG
from dargmin.modes import AbstractMode, Implicit, LateStart, Unrolled
from dargmin.problems import AbstractProblem, Objective
from dargmin.solve import check_arguments
from dargmin.strategy import choose_strategy
from dargmin.strategy import describe as describe_strategy
from dargmin.types import Parameters, Point

LARGE = 1e9
"""Bytes above which a choice that needs less memory is preferred, where there is one."""

CLOSE = 1.2
"""Errors within this factor count as equal too; then the cheaper choice is taken."""

ROUGH = 0.1
"""A plan whose error is larger says that more steps are needed."""

HORIZONS = (200, 2000)
"""Numbers of steps within which an accuracy is looked for, by unrolling."""

SHOWN = 8
"""Alternatives that are printed."""


@dataclass(frozen=True)
class Plan(Choice):
    """The choice that was made, why, and what else there is, the best first.

    Use it as `solve(problem, p.method, x0, theta, steps=p.steps, mode=p.mode)`."""

    reason: str = ""
    alternatives: tuple[Choice, ...] = ()

    def __str__(self) -> str:
        lines = [
            self.reason,
            "    error      cost    memory  (errors as measured, costs in gradients)",
            super().__str__(),
        ]
        lines += [str(choice) for choice in self.alternatives[:SHOWN]]
        rest = len(self.alternatives) - SHOWN
        return "\n".join(lines + [f"... and {rest} more in .alternatives"] * (rest > 0))

    __repr__ = __str__


@blames_arguments
def plan(
    problem: AbstractProblem,
    x0: Point,
    theta: Parameters,
    *,
    steps: int | None = None,
    rtol: float | None = None,
    memory: int | None = None,
    mode: AbstractMode | None = None,
) -> Plan:
    """Choose method, mode and step size, from the spectrum, the structure and the sizes.

    A pilot comes first: the solution and its derivative in up to 4 directions, by Newton's method.
    Then every candidate is run once, and its derivative along these directions is compared with
    the pilot's: what a plan says was measured, on this problem, at this x0 and θ. Candidates whose
    derivative diverges are listed last, and called that. The runs cost about as much as some tens
    of the derivatives that they are to choose for.

    Parameters
    ----------
    problem, x0, theta
        As in `solve`.
    steps : int, >= 1
        How many gradients the inner solve may take; the choice is the one with the least error.
    rtol : float, > 0
        The relative error that is wanted; the choice is that of `hypergradient`, which reaches it
        by Newton corrections, and `steps` on the plan is a limit. Give one of the two.
    memory : int, optional
        Bytes that reverse mode may keep beside the problem's own data.
    mode : AbstractMode, optional
        `Unrolled()` where the derivative of the algorithm itself is wanted: then only method,
        step size and checkpoints are chosen. Any if None.

    Returns
    -------
    Plan

    Raises
    ------
    ValueError
        If an argument is off, or nothing fits into the memory."""
    if (steps is None) == (rtol is None):
        raise ValueError(
            f"plan needs one of steps= and rtol=, but got steps={steps}, rtol={rtol}: a budget to "
            "make the best of, or an accuracy to reach."
        )
    check_arguments(problem, None, 1 if steps is None else steps)
    if rtol is not None and not float(rtol) > 0:
        raise ValueError(f"rtol must be > 0, but got {rtol}.")
    if mode is not None and not isinstance(mode, Unrolled):
        raise ValueError(
            f"plan chooses the mode, so that mode={mode!r} leaves it nothing to say. Give "
            "mode=Unrolled() for the derivative of the algorithm, or leave it out."
        )
    x0, theta = tree.as_point(x0), tree.as_arrays(theta)
    problem = settled(problem, x0, theta)
    size = max(tree.size(x0), 1) * tree.dtype(x0).itemsize
    if rtol is not None:
        return _for_accuracy(problem, x0, theta, float(rtol), size, memory, mode)
    pilot = Pilot.fly(problem, x0, theta)
    choices = candidates(problem, pilot, size, steps or 1, mode is not None)
    return _best(choices, pilot, memory)


def _best(choices: list[Choice], pilot: Pilot, memory: int | None) -> Plan:
    fitting = [c for c in choices if memory is None or c.memory <= memory]
    if not fitting:
        least = min((c.memory for c in choices), default=0)
        raise ValueError(
            f"Nothing fits into memory={memory} bytes: the least that a choice needs here is "
            f"{least}. Raise `memory`, lower `steps`, or leave the mode open."
        )
    chosen = _least(fitting, pilot.floor)
    order = lambda c: (math.isnan(c.predicted_error), c.predicted_error, c.cost)
    rest = sorted((c for c in fitting if c is not chosen), key=order)
    reason = " ".join([_why(chosen, fitting, len(choices) - len(fitting), memory), *pilot.notes])
    return Plan(**vars(chosen), reason=reason, alternatives=tuple(rest))


def _least(choices: list[Choice], floor: float) -> Choice:
    """The cheapest of those that are as good as the best."""
    least = min((c.predicted_error for c in choices if math.isfinite(c.predicted_error)),
                default=math.inf)  # fmt: skip
    near = [c for c in choices if c.predicted_error <= CLOSE * max(least, floor)]
    return min(near or choices[:1], key=lambda c: (c.memory > LARGE, c.cost))


def _why(chosen: Choice, choices: list[Choice], dropped: int, memory: int | None) -> str:
    if not chosen.measured:
        return "No candidate could be judged: there is no derivative to compare with."
    if math.isinf(chosen.predicted_error):
        return (
            f"No candidate has a finite derivative after {chosen.steps} steps: raise `steps`, "
            "start nearer to the solution, or use hypergradient(rtol=...)."
        )
    inner = name(chosen.method)
    sentences = []
    mode = chosen.mode
    if isinstance(mode, Implicit):
        polished = ", after a Newton correction of x_T, which squares the error" * mode.polish
        sentences.append(f"Implicit differentiation at the x_T of {inner}{polished}.")
    elif isinstance(mode, Unrolled):
        kept = "all states kept" if mode.checkpoint is None else "√T states kept"
        sentences.append(f"{inner}, unrolled, {kept}.")
    elif isinstance(mode, LateStart):
        sentences.append(f"{inner}, differentiated from step {mode.start} on.")
    sentences.append(_error(chosen))
    unrolled = [c for c in choices if isinstance(c.mode, Unrolled) and c.measured]
    if unrolled and not isinstance(chosen.mode, Unrolled):
        best = min(unrolled, key=lambda c: c.predicted_error)
        of_best = (
            f"the best would be {name(best.method)}: {in_words(best.predicted_error, best.mode)}"
        )
        diverges = math.isinf(best.predicted_error)
        sentences.append(f"Unrolled, {'every method diverges' if diverges else of_best}.")
    if dropped:
        sentences.append(f"{dropped} choices need more than {in_bytes(memory or 0)}.")
    return " ".join(sentences)


def _error(chosen: Choice) -> str:
    if not chosen.measured:
        return "Its error could not be measured."
    more = " More steps are needed; hypergradient(rtol=...) takes those that are missing."
    missing = more if chosen.predicted_error > ROUGH else ""
    return f"Measured relative error: {chosen.predicted_error:.1e}.{missing}"


def _for_accuracy(
    problem: AbstractProblem, x0: Point, theta: Parameters, rtol: float, size: int,
    memory: int | None, mode: AbstractMode | None,
) -> Plan:  # fmt: skip
    """The choice of `hypergradient`; or, to be unrolled, the first T that is enough."""
    pilot = Pilot.fly(problem, x0, theta)
    if mode is None:
        strategy = choose_strategy(problem, x0, theta, None)
        method = strategy.method
        if method is None and isinstance(problem, Objective):
            quadratic = problem.is_quadratic(x0, theta)
            method = ConjugateGradient() if quadratic else NewtonCG()
        elif method is None:
            method = root_finder()
        limit = {ConjugateGradient: tree.size(x0), NewtonCG: 50, FromOptimistix: 50}.get(
            type(method), 1000
        )
        limit = max(limit, 1)
        error = pilot.polished_error(problem, method, limit)
        choice = Choice(method, Implicit(polish=True), limit, error, 4 * pilot.products, 4 * size,
                        measured=pilot.known)  # fmt: skip
        if memory is not None and choice.memory > memory:
            return _best([choice], pilot, memory)
        reason = [
            describe_strategy(problem, x0, strategy, LinearOptions()),
            "hypergradient(rtol=...) does this, and checks it.",
            *([_error(choice)] if math.isfinite(error) else []),
            *pilot.notes,
        ]
        return Plan(**vars(choice), reason=" ".join(reason))
    for limit in HORIZONS if pilot.known else ():
        if enough := first_accurate(problem, pilot, size, limit, rtol):
            least = min(c.steps for c in enough)
            return _best([c for c in enough if c.steps == least], pilot, memory)
    raise ValueError(
        " ".join(
            [
                f"No method here reaches rtol={rtol} within {HORIZONS[-1]} unrolled steps. "
                "Loosen `rtol`, or leave the mode open.",
                *pilot.notes,
            ]
        )
    )

"""plan: which method, which mode, how many steps; and why."""

import math
from dataclasses import dataclass, replace

from dargmin import tree
from dargmin.candidates import (
    Choice,
    Pilot,
    candidates,
    first_accurate,
    in_bytes,
    is_quadratic,
    name,
)
from dargmin.linear import LinearOptions
from dargmin.methods import ConjugateGradient, GradientDescent, NewtonCG
from dargmin.modes import AbstractMode, Implicit, LateStart, Unrolled
from dargmin.problems import AbstractProblem, Objective
from dargmin.solve import check_arguments
from dargmin.strategy import choose_strategy
from dargmin.strategy import describe as describe_strategy
from dargmin.types import Parameters, Point

LARGE = 1e9
"""Bytes above which a choice that needs less memory is preferred, where there is one."""

CLOSE = 1.2
"""Predictions within this factor count as equal too; then the cheaper choice is taken."""


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
            "    error      cost    memory  (predicted; * measured)",
            super().__str__(),
        ]
        lines += [str(choice) for choice in self.alternatives[:SHOWN]]
        rest = len(self.alternatives) - SHOWN
        return "\n".join(lines + [f"... and {rest} more in .alternatives"] * (rest > 0))


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
    From there on theory predicts what every candidate would give. Off the quadratics, where it
    knows x* only and not the way there, what looks best is run once along these directions; where
    it is silent (on a `Composite`, say), every candidate is.

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
    size = max(tree.size(x0), 1) * tree.dtype(x0).itemsize
    if rtol is not None:
        return _for_accuracy(problem, x0, theta, float(rtol), size, memory, mode)
    pilot = Pilot.fly(problem, x0, theta, steps or 1)
    choices = [
        c for c in candidates(problem, pilot, size) if mode is None or isinstance(c.mode, Unrolled)
    ]
    return _best(problem, choices, pilot, memory)


def _best(
    problem: AbstractProblem, choices: list[Choice], pilot: Pilot, memory: int | None
) -> Plan:
    fitting = [c for c in choices if memory is None or c.memory <= memory]
    if not fitting:
        least = min((c.memory for c in choices), default=0)
        raise ValueError(
            f"Nothing fits into memory={memory} bytes: the least that a choice needs here is "
            f"{least}. Raise `memory`, lower `steps`, or leave the mode open."
        )
    chosen = _least(fitting, pilot.floor)
    while not (chosen.measured or is_quadratic(problem, pilot)):
        # Theory's model is that of x*; the way there may be another matter.
        error = pilot.measure(problem, chosen)
        error = math.inf if math.isnan(error) else error
        measured = replace(chosen, predicted_error=error, measured=True)
        fitting = [measured if c is chosen else c for c in fitting]
        chosen = _least(fitting, pilot.floor)
    known = [c for c in fitting if not math.isnan(c.predicted_error)]
    order = lambda c: (math.isnan(c.predicted_error), c.predicted_error, c.cost)
    rest = sorted((c for c in fitting if c is not chosen), key=order)
    reason = " ".join([_why(chosen, known, len(choices) - len(fitting), memory), *pilot.notes])
    return Plan(**vars(chosen), reason=reason, alternatives=tuple(rest))


def _least(choices: list[Choice], floor: float) -> Choice:
    """The cheapest of those that are as good as the best."""
    known = [c for c in choices if not math.isnan(c.predicted_error)]
    if not known:
        return choices[0]
    least = max(min(c.predicted_error for c in known), floor)
    near = [c for c in known if c.predicted_error <= CLOSE * least]
    return min(near or known, key=lambda c: (c.memory > LARGE, c.cost))


def _why(chosen: Choice, known: list[Choice], dropped: int, memory: int | None) -> str:
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
    if not math.isnan(chosen.predicted_error):
        word = "Measured" if chosen.measured else "Predicted"
        sentences.append(f"{word} relative error: {chosen.predicted_error:.1e}.")
    unrolled = [c for c in known if isinstance(c.mode, Unrolled)]
    if unrolled and not isinstance(chosen.mode, Unrolled):
        best = min(unrolled, key=lambda c: c.predicted_error)
        sentences.append(
            f"Unrolled, the best would be {name(best.method)}: {best.predicted_error:.1e}."
        )
    if dropped:
        sentences.append(f"{dropped} choices need more than {in_bytes(memory or 0)}.")
    return " ".join(sentences)


def _for_accuracy(
    problem: AbstractProblem, x0: Point, theta: Parameters, rtol: float, size: int,
    memory: int | None, mode: AbstractMode | None,
) -> Plan:  # fmt: skip
    """The choice of `hypergradient`; or, to be unrolled, the first T that theory says is enough."""
    if mode is None:
        strategy = choose_strategy(problem, x0, theta, None)
        method = strategy.method
        if method is None and isinstance(problem, Objective):
            quadratic = problem.is_quadratic(x0, theta)
            method = ConjugateGradient() if quadratic else NewtonCG()
        elif method is None:
            method = GradientDescent()
        limit = {ConjugateGradient: tree.size(x0), NewtonCG: 50}.get(type(method), 1000)
        reason = describe_strategy(problem, x0, strategy, LinearOptions())
        pilot = Pilot.fly(problem, x0, theta, 1)
        choice = Choice(method, Implicit(polish=True), max(limit, 1), rtol,
                        4 * pilot.products, 4 * size)  # fmt: skip
        if memory is not None and choice.memory > memory:
            return _best(problem, [choice], pilot, memory)
        more = "hypergradient(rtol=...) does this, and checks it."
        return Plan(**vars(choice), reason=f"{reason} {more}")
    for limit in HORIZONS:
        pilot = Pilot.fly(problem, x0, theta, limit)
        if enough := first_accurate(problem, pilot, size, rtol):
            least = min(c.steps for c in enough)
            return _best(problem, [c for c in enough if c.steps == least], pilot, memory)
    raise ValueError(
        f"No method here reaches rtol={rtol} within {HORIZONS[-1]} unrolled steps, as far as "
        "theory predicts. Loosen `rtol`, or leave the mode open."
    )

"""What the numbers of a study say, in sentences that are made from them."""

import numpy as np

from dargmin.studies.results import CurseStudy, MethodRun, ModeError

__all__ = ["NEGLIGIBLE", "headline", "number", "times_as_wrong", "verdict"]

NEGLIGIBLE = 1e-9
"""Errors below this are not told apart: linear solves stop at 1e-10, and rounding is near."""


def verdict(study: CurseStudy) -> list[str]:
    """What the numbers say, in sentences that are made from them."""
    sentences = _about_burn_in(study)
    sentences += _about_prediction(study)
    sentences += _about_lag(study)
    sentences += _about_modes(study)
    return sentences + _about_certificates(study)


def headline(study: CurseStudy) -> str:
    """The finding, in one line."""
    worst = study.worst
    if not worst.burn_in.visible:
        never = "never" if worst.burn_in.height <= 1 else "never more than 5 %"
        return f"No curse here: the unrolled derivative is {never} worse than returning zero"
    if not np.isfinite(worst.burn_in.height):
        return f"{capitalised(worst.label)} diverges, and its unrolled derivative with it"
    times = times_as_wrong(worst.burn_in.height)
    return f"Before it gets better, the unrolled derivative gets {times} as wrong as returning zero"


def times_as_wrong(height: float) -> str:
    """A burn-in's height as a person would say it: 1.24, 8.1, 37 times."""
    digits = 2 if height < 2 else 1 if height < 9.95 else 0
    return f"{height:.{digits}f} times" if height < 1e5 else f"{number(height)} times"


def capitalised(label: str) -> str:
    """With a capital first letter, the rest as it is."""
    return label[0].upper() + label[1:]


def number(value: float) -> str:
    """A number in few characters: 37, 8.1, 0.17, 3.2e-5."""
    if not np.isfinite(value):
        return "diverged"
    if 0.01 <= value < 9.95:
        return f"{value:#.2g}"
    if 9.95 <= value < 1e5 or value == 0:
        return f"{value:.0f}"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa if mantissa != '1.0' else '1'}e{int(exponent)}"


def _about_burn_in(study: CurseStudy) -> list[str]:
    worst, total = study.worst, len(study.runs)
    burn_in = worst.burn_in
    if not burn_in.visible:
        methods = _joined([run.label for run in study.runs])
        return [
            f"No burn-in: with {methods} the unrolled derivative is never more than 5 % worse than "
            "returning zero.",
            *_why_no_burn_in(study),
        ]
    if not np.isfinite(burn_in.height):
        return [f"{capitalised(worst.label)} diverged: its steps are too long for this problem."]
    burnt = [run for run in study.runs if run.burn_in.visible]
    over = (
        f"it is not better than zero by t = {study.steps}, the end of the run (raise --steps)"
        if burn_in.end is None
        else f"from t = {burn_in.end} on it is better than zero"
    )
    overshoot = float(np.max(worst.iterate_error))
    iterate = (
        "All that time the coefficients are closer to the solution than the start was."
        if overshoot <= 1 + 1e-9
        else f"The coefficients overshoot too, to {times_as_wrong(overshoot)} their first error."
    )
    sentences = [
        f"Burn-in with {len(burnt)} of {count(total, 'method')}. Worst is {worst.label}: at "
        f"t = {burn_in.peak} its unrolled derivative is {times_as_wrong(burn_in.height)} as wrong "
        f"as returning zero; {over}. {iterate}"
    ]
    if study.start == "random":
        sentences.append(_worst_case(study.drive) + " Compare --start zeros.")
    spared = [run.label for run in study.runs if not run.burn_in.visible]
    if spared:
        sentences.append(f"No burn-in with {_joined(spared)}.")
    return sentences


def _why_no_burn_in(study: CurseStudy) -> list[str]:
    reasons = []
    if study.upper_share is not None:
        reasons.append(
            f"From zero it is the directions of large curvature that burn in, and "
            f"{100 * study.upper_share:.2g} % of ‖dw*‖² lies in the upper half of the Hessian's "
            "spectrum. A start further away (--start random) excites all of them."
        )
    else:
        reasons.append(_worst_case(study.drive))
    if study.L / study.mu < 5:
        reasons.append(
            f"The problem is well conditioned (L/μ = {study.L / study.mu:.2g}), which leaves no "
            "time for a burn-in: lower --penalty."
        )
    return reasons


def _worst_case(q: float) -> str:
    """max_t e^{-hμt} (1 + hμt q) = q e^{1/q - 1}, with q = ‖dH (w_0 - w*)‖ / (μ ‖dw*‖) > 1."""
    start = f"The start forces ‖dH (w0 - w*)‖ = {number(q)} μ ‖dw*‖"
    if q <= 1:
        return f"{start}, too little for any burn-in of gradient descent on a quadratic."
    return (
        f"{start}: in the worst case, all of it in the flattest direction, gradient descent on a "
        f"quadratic would become {times_as_wrong(q * np.exp(1 / q - 1))} as wrong as zero."
    )


def _about_prediction(study: CurseStudy) -> list[str]:
    """How far the predicted peaks are from the measured ones."""
    pairs = [(run, run.expected) for run in study.runs if run.predicted is not None]
    pairs = [
        (run, e) for run, e in pairs if e and np.isfinite([e.height, run.burn_in.height]).all()
    ]
    if not pairs:
        return []
    ratios = [max(e.height / run.burn_in.height, run.burn_in.height / e.height) for run, e in pairs]
    off = 100 * (max(ratios) - 1)
    heights = "exact" if off < 0.1 else f"right within {off:.2g} %" if off < 100 else "far off"
    model = (
        "the Hessian and its change with θ at w*"
        if study.model == "ridge"
        else "the Hessian at w* and its change, as if the loss were quadratic"
    )
    return [
        f"Predicted without running the methods, from {model}: the heights of "
        f"{'the burn-in' if len(pairs) == 1 else f'all {len(pairs)} burn-ins'} are {heights}."
    ]


def _about_lag(study: CurseStudy) -> list[str]:
    level = 1e-3
    done = []
    for run in study.runs:
        iterate = run.first_below(level, run.iterate_error)
        derivative = run.first_below(level, run.derivative_error)
        if iterate is not None and derivative is not None:
            done.append((iterate, derivative, run.label))
    if not done:
        return []
    iterate, derivative, label = min(done)
    return [
        f"{capitalised(label)} brings the coefficients to a relative error of {level:g} first, in "
        f"{count(iterate, 'iteration')}; its unrolled derivative needs {derivative}."
    ]


def _about_modes(study: CurseStudy) -> list[str]:
    judged = [run for run in study.runs if run.modes and np.isfinite(run.modes[0].error)]
    if not judged:
        return []
    run = max(judged, key=lambda run: run.modes[0].error)
    unrolled, *others = run.modes
    if unrolled.error < NEGLIGIBLE:
        return ["At w_T every method has converged, and unrolling is as good as any other way."]
    listed = ", ".join(f"{mode.mode} {number(mode.error)}" for mode in others)
    least = min(mode.error for mode in run.modes)
    best = [mode.mode for mode in run.modes if mode.error <= 1.05 * least]
    comparison = (
        "unrolling is the closest"
        if unrolled.mode in best
        else f"{_joined(best)} {'is' if len(best) == 1 else 'are'} "
        f"{number(unrolled.error / max(least, NEGLIGIBLE))} times closer to the truth"
    )
    if least > 1:
        comparison += ", and all are worse than returning zero"
    return [
        f"After {count(study.steps, 'step')} of {run.label} the unrolled derivative has the "
        f"relative error {number(unrolled.error)}; at the same w_T: {listed}. So {comparison}."
    ]


def _about_certificates(study: CurseStudy) -> list[str]:
    every = [(run, mode) for run in study.runs for mode in run.modes]
    judged = [(run, mode) for run, mode in every if NEGLIGIBLE < mode.error < np.inf]
    if not judged:
        return [f"Certificates: nothing to judge, all errors at w_T are < {number(NEGLIGIBLE)}."]

    def factor(pair: tuple[MethodRun, ModeError]) -> float:
        estimate, truth = pair[1].estimate, pair[1].error
        if not (np.isfinite(estimate) and estimate > 0):
            return np.inf
        return max(estimate / truth, truth / estimate)

    worst = max(judged, key=factor)
    rest = len(every) - len(judged)
    others = f" ({rest} more errors are below {number(NEGLIGIBLE)}.)" if rest else ""
    near = sum(factor(pair) <= 2 for pair in judged)
    if factor(worst) < 1.05:
        sentence = f"Certificates: all {len(judged)} estimates are within 5 % of the true error."
    else:
        sentence = (
            f"Certificates: {near} of {len(judged)} estimates are within a factor 2 of the true "
            f"error; furthest off, by a factor {factor(worst):.2f}, is that of {worst[1].mode} "
            f"after {worst[0].label}."
        )
    failed = sorted({mode.status for _, mode in every if mode.status != "ok"})
    return [sentence + others, *(f"Marked with !: {message}" for message in failed)]


def count(n: int, noun: str) -> str:
    """`1 step`, `2 steps`."""
    return f"{n} {noun}" + ("" if n == 1 else "s")


def _joined(names: list[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)

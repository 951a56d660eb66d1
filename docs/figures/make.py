"""Draw the figures of docs/the-curse-explained.md, and print the numbers that it quotes.

python docs/figures/make.py [--out docs/figures]"""

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
from jax import Array
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

import dargmin
from dargmin import theory
from dargmin.methods import AbstractMethod, DerivativeKernel
from dargmin.problems import zoo
from dargmin.studies.curse import METHODS
from dargmin.studies.figures import FAINT, GREY, INK, METHOD_COLORS, STYLE

THETA = float(np.log(0.01))  # the logarithm of the penalty
STEPS, BUDGET = 300, 100
WORSE, BETTER = METHOD_COLORS["chebyshev"], METHOD_COLORS["gd"]
COLORS = METHOD_COLORS | {"derivative-kernel": "#332288"}
LABELS = {key: choice.label for key, choice in METHODS.items()}
LABELS["derivative-kernel"] = "DerivativeKernel"
Curve = np.ndarray


def ridge(noise: float) -> zoo.Instance:
    """The page's example: 20 features of falling scale, two of which make the target."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(200, 20)) * np.geomspace(1, 0.05, 20)
    return zoo.ridge(X, X[:, 0] + X[:, 1] + noise * rng.normal(size=200))


def methods(mu: float, L: float) -> dict[str, AbstractMethod]:
    tuned = {key: choice.tuned(mu, L) for key, choice in METHODS.items()}
    return tuned | {"derivative-kernel": DerivativeKernel(mu, L)}


def errors(
    instance: zoo.Instance, method: AbstractMethod, steps: int, x0: object = None
) -> tuple[Curve, Curve]:
    """‖x_t - x*‖ / ‖x_0 - x*‖ and ‖dx_t - dx*‖ / ‖dx*‖ of unrolling, t = 0..steps."""
    start = instance.x0 if x0 is None else jnp.asarray(x0)
    xs, dxs = traces(instance, method, steps, start)
    x = np.linalg.norm(xs - instance.solution(THETA), axis=1)
    dx = np.linalg.norm(dxs - instance.jacobian(THETA), axis=1)
    return x / x[0], dx / np.linalg.norm(instance.jacobian(THETA))


def traces(
    instance: zoo.Instance, method: AbstractMethod, steps: int, x0: Array
) -> tuple[Curve, Curve]:
    """x_t and dx_t, t = 0..steps, unrolled along θ."""
    one = jnp.ones(())
    xs, dxs = dargmin.trace(instance.problem, method, x0, one * THETA, one, steps=steps)
    return np.asarray(xs), np.asarray(dxs)


def two_errors() -> Figure:
    """The iterate and the derivative of gradient descent with its fastest step."""
    instance = ridge(0.1)
    x, dx = errors(instance, methods(*instance.spectrum(THETA))["gd-optimal"], STEPS)
    found = theory.burn_in(dx)
    peak, end = int(found.peak), int(found.length)
    say("two-errors", peak=peak, height=dx[peak], over=end, x_100=x[100], dx_100=dx[100])
    figure, (ax,) = canvas(3.7)
    t = np.arange(dx.size)
    errors_axis(ax, t[-1], (1e-3, 9))
    ax.fill_between(t, 1, dx, where=dx >= 1, color=WORSE, alpha=0.16, lw=0)
    ax.plot(t, x, color=GREY, lw=1.6)
    ax.plot(t, dx, color=WORSE, lw=2.8)
    ax.plot(peak, dx[peak], "o", ms=7, color=WORSE, mec="white", mew=1.2)
    ax.plot(end, 1, "o", ms=6, color="white", mec=WORSE, mew=1.6, zorder=5)
    words = f"{dx[peak]:.1f} times as wrong as zero, at t = {peak}"
    label(ax, peak + 4, 1.25 * dx[peak], words, WORSE)
    label(ax, end + 6, 1.25, f"no longer worse than zero from t = {end}", WORSE, va="bottom")
    label(ax, 225, 0.32, "unrolled derivative", WORSE, weight="bold", ha="left")
    label(ax, 100, 0.021, "iterate", GREY, weight="bold", ha="right")
    ax.set_xlabel("iteration t")
    return figure


def polynomials() -> Figure:
    """|P_t|, |P_t'| and λ|P_t'| over the spectrum, at the peak of the first figure."""
    mu, L = ridge(0.1).spectrum(THETA)
    t, lam = 41, np.linspace(mu, L, 1500)
    figure, axes = canvas(3.8, 2, sharey=True)
    titles = {"gd": "h = 1/L", "gd-optimal": "h = 2/(L + μ)"}
    for ax, (key, title) in zip(axes, titles.items(), strict=True):
        P, dP = (np.abs(u[t]) for u in theory.residual_polynomial(methods(mu, L)[key], lam, t))
        say("polynomials", key=key, P=P.max(), dP_mu=dP[0], dP_L=dP[-1], lam_dP=max(lam * dP))
        ax.axhline(1, color=GREY, lw=0.9)
        ax.plot(lam, dP, color=WORSE, lw=1.4, ls=(0, (3, 2)))
        ax.plot(lam, lam * dP, color=WORSE, lw=2.8)
        ax.plot(lam, P, color=GREY, lw=2.0)
        ax.set_title(title, loc="left", weight="bold", size=11)
        ax.set(xlabel="eigenvalue λ", xlim=(0, L * 1.01), yscale="log", ylim=(1e-4, 100))
        decades(ax)
    label(axes[0], 0.08, 18, f"$|P_{{{t}}}'|$", WORSE)
    label(axes[0], 0.16, 0.12, f"$λ|P_{{{t}}}'|$", WORSE)
    label(axes[0], 0.03, 6e-4, f"$|P_{{{t}}}|$", GREY)
    label(axes[1], 0.93, 25, f"$λ|P_{{{t}}}'|$ at λ = L: {L * dP[-1]:.0f}", WORSE, ha="right")
    return figure


def step_size() -> Figure:
    """The worst case of gradient descent for each step size: burn-in, and time to 1e-2."""
    kappa, steps = 1e-3, 8000
    largest = 2 / (1 + kappa)
    # dense where the action is: towards 2/(L + μ)
    s = np.unique(np.concatenate([2 - np.geomspace(1, 2 - largest, 40), [2**0.5, 1.95, 1.99]]))
    traces = (
        np.asarray(theory.worst_case_error(dargmin.GradientDescent(h), kappa, 1, steps, A=1, G=0))
        for h in s
    )
    found = [(E.max(), settled(E, 1e-2), int(theory.burn_in(E).length)) for E in traces]
    height, time, length = map(np.array, zip(*found, strict=True))
    for value in (1, 2**0.5, 1.95, 1.99, largest):
        k = int(np.argmin(abs(s - value)))
        say("step-size", hL=s[k], height=height[k], burn_in=length[k], to_1e_2=time[k])
    for key, method in methods(kappa, 1.0).items():
        if key in ("heavy-ball", "nesterov", "chebyshev"):
            E = np.asarray(theory.worst_case_error(method, kappa, 1, 300, A=1, G=0))
            say("step-size", key=key, height=E.max(), peak=E.argmax(), to_1e_2=settled(E, 1e-2))
    figure, axes = canvas(3.5, 2)
    for ax, values, title in zip(
        axes, (height, time), ("burn-in: largest error", "steps to an error of 1e-2"), strict=True
    ):
        color = WORSE if values is height else BETTER
        ax.plot(2 - s, values, color=color, lw=2.8)
        ax.set(xscale="log", xlim=(1.1, 0.0018), xlabel="step size times L")
        ax.xaxis.set_major_locator(FixedLocator([1, 0.1, 0.01, 0.002]))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda gap, _: f"{2 - gap:.4g}"))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.set_title(title, loc="left", weight="bold", size=11)
        for value, name in ((2**0.5, "√2"), (1.99, "1.99"), (largest, "2L/(L+μ)")):
            k = int(np.argmin(abs(s - value)))
            ax.plot(2 - s[k], values[k], "o", ms=6.5, color=color, mec="white", mew=1.2)
            right = values is time and name == "√2"  # where the curve leaves room
            ax.annotate(
                f"{name}\n{values[k]:.0f}", (2 - s[k], values[k]), (6 if right else -6, 5),
                textcoords="offset points", ha="left" if right else "right", va="bottom",
                color=color, size=9,
            )  # fmt: skip
    axes[0].set(yscale="log", ylim=(0.7, 1000))
    axes[1].set(ylim=(0, 9000))
    return figure


def which() -> Figure:
    """The same Hessian with other targets and another start."""
    start = np.random.default_rng(1).normal(size=20)
    cases = [
        ("no noise", 0.0, None, METHOD_COLORS["chebyshev"]),
        ("noise 0.1", 0.1, None, METHOD_COLORS["heavy-ball"]),
        ("noise 1", 1.0, None, METHOD_COLORS["nesterov"]),
        ("no noise, random start", 0.0, start, METHOD_COLORS["sobolev"]),
    ]
    figure, axes = canvas(3.7, 2, sharey=True)
    for ax, key, title in zip(
        axes, ("gd", "gd-optimal"), ("h = 1/L", "h = 2/(L + μ)"), strict=True
    ):
        errors_axis(ax, STEPS, (3e-4, 60))
        ax.set_title(title, loc="left", weight="bold", size=11)
        ax.set_xlabel("iteration t")
        for name, noise, x0, color in cases:
            instance = ridge(noise)
            dx = errors(instance, methods(*instance.spectrum(THETA))[key], STEPS, x0)[1]
            ax.plot(dx, color=color, lw=2.3, label=name)
            say("which", key=key, case=name, height=dx.max(), peak=dx.argmax(), last=dx[-1])
    axes[0].legend(loc="lower left", frameon=False, labelcolor="linecolor", handlelength=1.0)
    axes[1].set_ylabel("")
    return figure


def compare() -> Figure:
    """Every method on the page's example, and the implicit derivative at the same iterates."""
    instance = ridge(0.1)
    every = methods(*instance.spectrum(THETA))
    panels = {
        "with a burn-in": ("gd-optimal", "heavy-ball", "chebyshev"),
        "without": ("gd", "nesterov", "sobolev", "derivative-kernel"),
    }
    figure, axes = canvas(4.2, 2, sharey=True)
    implicit = implicit_errors(instance, every["chebyshev"], BUDGET)
    for ax, (title, keys) in zip(axes, panels.items(), strict=True):
        errors_axis(ax, BUDGET, (1e-11, 60))
        name = "implicit, at Chebyshev's $x_t$" if ax is axes[0] else None
        ax.plot(implicit, color=INK, lw=1.3, ls=(0, (3, 2)), label=name)
        for key in keys:
            dx = errors(instance, every[key], BUDGET)[1]
            ax.plot(dx, color=COLORS[key], lw=2.5, label=LABELS[key])
            say("compare", key=key, height=dx.max(), at_20=dx[20], at_50=dx[50], at_100=dx[100])
        ax.set_title(title, loc="left", weight="bold", size=11)
        ax.set_xlabel("gradients t")
        ax.legend(loc="lower left", frameon=False, labelcolor="linecolor", handlelength=1.0)
    say("compare", key="implicit", at_20=implicit[20], at_50=implicit[50], at_100=implicit[100])
    axes[1].set_ylabel("")
    return figure


def implicit_errors(instance: zoo.Instance, method: AbstractMethod, steps: int) -> Curve:
    """‖-H⁻¹ ∂_θ∇f(x_t) - dx*‖ / ‖dx*‖: for ridge, ∂_θ∇f(x) = e^θ x and H does not depend on x."""
    xs, _ = traces(instance, method, steps, instance.x0)
    H = np.asarray(jax.hessian(instance.problem.value)(instance.x0, THETA))
    dx = -np.linalg.solve(H, np.exp(THETA) * xs.T).T
    truth = instance.jacobian(THETA)
    return np.linalg.norm(dx - truth, axis=1) / np.linalg.norm(truth)


def limit() -> Figure:
    """The least worst-case errors of unrolling and implicit differentiation, and two methods."""
    mu, L, steps = 0.01, 1.0, 60
    every = np.arange(1, steps + 1)
    some = np.arange(4, steps + 1, 4)
    implicit = np.asarray(theory.minimax_implicit(mu, L, every))
    least = np.array([theory.minimax_unrolled(mu, L, int(t)) for t in some])
    worst = {
        ("Chebyshev", "chebyshev"): dargmin.Chebyshev(mu, L),
        ("DerivativeKernel\nα = 0", "derivative-kernel"): DerivativeKernel(mu, L, alpha=0.0),
    }
    figure, (ax,) = canvas(3.9)
    ax.set(yscale="log", ylim=(5e-6, 300), xlim=(0, 78), xlabel="gradients t")
    ax.set_xticks(range(0, steps + 1, 10))
    ax.set_ylabel("worst-case relative error")
    decades(ax)
    for (name, key), method in worst.items():
        E = np.asarray(theory.worst_case_error(method, mu, L, steps, A=1, G=0))
        ax.plot(E, color=COLORS[key], lw=2.3)
        label(ax, 61, E[-1], name, COLORS[key], va="bottom")
        say("limit", key=key, height=E.max(), at_20=E[20], at_40=E[40], at_60=E[60])
    ratio = np.asarray(theory.minimax_ratio(mu, L, every))
    ax.plot(some, least, color=BETTER, lw=2.6)
    ax.plot(every[29:], (ratio * implicit)[29:], color=INK, lw=1.2, ls=(0, (3, 2)))
    ax.plot(every, implicit, color=GREY, lw=1.8)
    label(ax, 61, least[-1], "least of any\nunrolling", BETTER, weight="bold", va="top")
    label(ax, 61, implicit[-1], "implicit", GREY, weight="bold")
    for t, value in zip(some, least, strict=True):
        if t in (20, 40, 60):
            say("limit", t=t, unrolled=value, ratio=value / implicit[t - 1], formula=ratio[t - 1])
    return figure


def certificate() -> Figure:
    """The estimate at iterates of a logistic regression, with and without a Newton correction."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(200, 20)) * np.geomspace(1, 0.05, 20)
    instance = zoo.logistic(X, np.sign(X[:, 0] + X[:, 1] + 0.1 * rng.normal(size=200)))
    method, x0 = dargmin.Chebyshev(*instance.spectrum(THETA)), 3 * rng.normal(size=20)
    xs, dxs = traces(instance, method, BUDGET, jnp.asarray(x0))
    true = errors(instance, method, BUDGET, x0)[1]
    times = np.unique(np.geomspace(1, BUDGET, 22).astype(int))
    scale = np.linalg.norm(instance.jacobian(THETA))
    seen, naive = np.array([estimates(instance, xs[t], dxs[t]) for t in times]).T / scale
    relative, simple = seen / true[times], naive / true[times]
    say("certificate", height=true.max(), peak=true.argmax())
    say("certificate", key="certify", low=relative.min(), high=relative.max())
    say("certificate", key="at x_t", low=simple.min(), high=simple.max())
    figure, (ax,) = canvas(3.7)
    errors_axis(ax, BUDGET, (1e-4, 40))
    ax.set(xscale="log", xlim=(0.9, 40), xlabel="iteration t")
    ax.xaxis.set_major_locator(FixedLocator([1, 2, 5, 10, 20, 40]))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.plot(np.arange(1, BUDGET + 1), true[1:], color=WORSE, lw=2.8, label="true error")
    ax.plot(times, seen, "|", color=INK, ms=13, mew=1.6, label="estimate of certify")
    name = "distance from the implicit derivative at $x_t$"
    ax.plot(times, naive, "_", color=BETTER, ms=11, mew=1.8, label=name)
    ax.legend(frameon=False, loc="lower left")
    return figure


@eqx.filter_jit
def estimates(instance: zoo.Instance, x: Array, dx: Array) -> tuple[Array, Array]:
    """What `certify` says of dx, and its distance from the implicit derivative at x itself."""
    one, problem = jnp.ones(()), instance.problem
    seen = dargmin.certify(problem, x, THETA, tangent=one, jvp=dx).absolute_error
    prepared = lambda p: dargmin.linear.prepare(problem, x, p)
    at_x = lambda p: dargmin.Implicit().attach(prepared(p), x, p, throw=False)
    implicit = jax.jvp(at_x, (one * THETA,), (one,))[1]
    return seen, jnp.linalg.norm(dx - implicit)


FIGURES: dict[str, Callable[[], Figure]] = {
    "two-errors": two_errors,
    "polynomials": polynomials,
    "step-size": step_size,
    "which": which,
    "compare": compare,
    "limit": limit,
    "certificate": certificate,
}


def canvas(height: float, columns: int = 1, sharey: bool = False) -> tuple[Figure, np.ndarray]:
    figure = Figure(figsize=(7, height), dpi=150, layout="constrained")
    return figure, figure.subplots(1, columns, squeeze=False, sharey=sharey)[0]


def errors_axis(ax: Axes, last: int, limits: tuple[float, float]) -> None:
    ax.set(yscale="log", xlim=(0, last), ylim=limits)
    ax.set_ylabel("relative error   (1: returning zero)")
    decades(ax)
    ax.axhline(1, color=GREY, lw=0.9)


def decades(ax: Axes) -> None:
    ax.yaxis.set_major_locator(LogLocator(10, numticks=20))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.grid(axis="y", color=FAINT, lw=0.6)
    ax.set_axisbelow(True)


def label(ax: Axes, x: float, y: float, words: str, color: str, **style: object) -> None:
    ax.text(x, y, words, color=color, **({"va": "center"} | style))


def settled(E: Curve, level: float) -> int:
    """The first t from which on E stays below `level`."""
    return int(np.max(np.where(level < E, np.arange(1, E.size + 1), 0)))


def say(figure: str, **numbers: object) -> None:
    words = (
        f"{k}={v if isinstance(v, str | int) else f'{float(v):.4g}'}" for k, v in numbers.items()
    )
    print(f"{figure}:", *words)


def draw(out: Path) -> Iterator[Path]:
    out.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(STYLE):
        for name, figure in FIGURES.items():
            path = out / f"{name}.png"
            figure().savefig(path)
            yield path


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    arguments = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    for path in draw(arguments.out):
        print(f"{path}: {path.stat().st_size // 1000} kB")

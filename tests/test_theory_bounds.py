"""Bounds for fixed points and for derivatives at a frozen point: never violated, and tight."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from dargmin import theory

REFERENCE = json.loads((Path(__file__).parent / "theory.json").read_text())
N, D, T = 200, 6, 60
ROUNDING = 1e-12  # of the oracles: condition numbers are below 1e3


class Ridges:
    """N quadratics ½xᵀ(S + θI)x - bᵀx under gradient descent, in NumPy: x_t and dx_t/dθ.

    x -> x - h((S + θI)x - b) has ρ = r, M = h: ∂_x A does not depend on x, ∂_θ A = -hx does."""

    def __init__(self):
        random = np.random.default_rng(1)
        self.L = 10 ** random.uniform(-1, 1, N)
        self.mu = self.L * 10 ** random.uniform(-3, -0.3, N)
        lam = self.mu[:, None] * (self.L / self.mu)[:, None] ** random.uniform(0, 1, (N, D))
        lam[:, 0], lam[:, -1] = self.mu, self.L
        Q = np.linalg.qr(random.normal(size=(N, D, D)))[0]
        self.H = np.einsum("nij,nj,nkj->nik", Q, lam, Q)
        self.h = 2 / (self.L + self.mu)
        self.rate = (self.L - self.mu) / (self.L + self.mu)
        self.solution = random.normal(size=(N, D))
        self.derivative = -np.linalg.solve(self.H, self.solution[..., None])[..., 0]
        self.x0 = self.solution + random.normal(size=(N, D)) * 10 ** random.uniform(-2, 2, (N, 1))
        self.e0 = np.linalg.norm(self.x0 - self.solution, axis=1)
        self.norm = np.linalg.norm(self.derivative, axis=1)

    def iterates(self, start):
        """x_t for t = 0..T, and dx_t held at zero until t = start: (T + 1, N, D) each."""
        x, dx = self.x0, np.zeros((N, D))
        xs, dxs = [x], [dx]
        for t in range(T):
            moved = dx - self.h[:, None] * (np.einsum("nij,nj->ni", self.H, dx) + x)
            dx = dx if t < start else moved
            b = np.einsum("nij,nj->ni", self.H, self.solution)
            x = x - self.h[:, None] * (np.einsum("nij,nj->ni", self.H, x) - b)
            xs.append(x)
            dxs.append(dx)
        return np.array(xs), np.array(dxs)

    def errors(self, start=0):
        return np.linalg.norm(self.iterates(start)[1] - self.derivative, axis=-1)


RIDGES = Ridges()


def test_forward_bounds_hold_on_two_hundred_ridge_problems_and_nearly_attain_them():
    p, k = RIDGES, np.arange(T + 1)[:, None]
    bound = theory.forward_bound(p.rate, k, M=p.h, e0=p.e0, delta0=p.norm)
    ratio = p.errors() / (np.asarray(bound) + ROUNDING * p.norm)
    assert np.all(ratio <= 1 + 1e-9)
    assert np.max(ratio[10:]) > 0.9
    # equality: one eigenvalue, and x_0 on the other side of x* than the derivative
    x, dx, rate = 1.0 + 3.0, 0.0, 0.9
    for t in range(1, 30):
        x, dx = x - 0.1 * (x - 1.0), dx - 0.1 * (dx + x)
        tight = theory.forward_bound(rate, t, M=0.1, e0=3.0, delta0=1.0)
        away = abs(dx + 1.0)
        assert away <= tight * (1 + 1e-12)
        signed = -(rate**t) * -1.0 - t * rate ** (t - 1) * 0.1 * 3.0
        assert_allclose(dx + 1.0, signed, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("start", [0, 7, 40, 59])
def test_late_start_and_reverse_bounds_hold(start):
    p = RIDGES
    bound = theory.late_start_bound(p.rate, T, start, M=p.h, e0=p.e0, delta0=p.norm)
    floor = ROUNDING * p.norm
    assert np.all(p.errors(start)[-1] <= np.asarray(bound) * (1 + 1e-9) + floor)
    # one adjoint, T - start steps back along the iterates
    w = np.random.default_rng(2).normal(size=(N, D))
    xs, _ = p.iterates(0)
    adjoint, total = w, np.zeros(N)
    for t in reversed(range(start, T)):
        total -= p.h * np.sum(xs[t] * adjoint, axis=1)
        adjoint = adjoint - p.h[:, None] * np.einsum("nij,nj->ni", p.H, adjoint)
    error = np.abs(total - np.sum(p.derivative * w, axis=1))
    backwards = theory.reverse_bound(p.rate, T, T - start, M=p.h, e0=p.e0, norm=p.norm)
    assert_allclose(backwards, bound, rtol=1e-13)
    bound = np.asarray(backwards) * np.linalg.norm(w, axis=1)
    assert np.all(error <= bound * (1 + 1e-9) + floor * np.linalg.norm(w, axis=1))


@pytest.mark.parametrize("case", REFERENCE["fixed_point"], ids=lambda case: str(case["rate"]))
def test_fixed_point_bounds_equal_the_fifty_digit_reference(case):
    rate, norms = case["rate"], {key: case[key] for key in ("M", "e0", "delta0")}
    index = theory.forward_peak(rate, **norms)
    assert abs(int(index) - case["peak_index"]) <= 1  # ρ = 0.9: two steps tie
    assert_allclose(theory.forward_bound(rate, index, **norms), case["peak"], rtol=1e-12)
    assert_allclose(theory.forward_bound(rate, case["steps"], **norms), case["bound"], rtol=1e-12)
    assert theory.optimal_start(rate, 10_000, **norms) == case["start"]
    start = theory.optimal_start(rate, case["steps"], **norms)
    assert start == case["best_start"]
    late = theory.late_start_bound(rate, case["steps"], start, **norms)
    assert_allclose(late, case["late_bound"], rtol=1e-12)


def test_peaks_and_starts_equal_a_direct_search_on_five_hundred_bounds():
    random = np.random.default_rng(4)
    n, steps = 500, 3000
    rate = 1 - 10 ** random.uniform(-2, 0, n)
    M, e0, delta0 = 10 ** random.uniform(-2, 2, (3, n))
    rate[:10], e0[10:20], delta0[20:30] = 0, 0, 0
    norms = dict(M=M, e0=e0, delta0=delta0)
    k = np.arange(steps + 1)[:, None]
    forward = np.asarray(theory.forward_bound(rate, k, **norms))
    peak = theory.forward_peak(rate, **norms)
    found = np.take_along_axis(forward, np.asarray(peak)[None], axis=0)[0]
    assert_allclose(found, np.max(forward, axis=0), rtol=1e-12)
    late = np.asarray(theory.late_start_bound(rate, steps, k, **norms))
    start = np.asarray(theory.optimal_start(rate, steps, **norms))
    # both underflow at ρ^T: so compare a short horizon, too
    assert np.all(np.take_along_axis(late, start[None], axis=0)[0] <= np.min(late, axis=0) * 1.001)
    short = np.asarray(theory.late_start_bound(rate, 20, k[:21], **norms))
    start = np.asarray(theory.optimal_start(rate, 20, **norms))
    assert_allclose(
        np.take_along_axis(short, start[None], axis=0)[0], np.min(short, axis=0), rtol=1e-12
    )


def test_a_warm_start_is_a_late_start_with_a_floor():
    rate, steps, norm, M = 0.95, 80, 3.0, 0.2
    distances = theory.warm_distances(rate, steps, e0=5.0, lipschitz=2.0, changes=np.full(6, 0.01))
    want = [5.0]
    for _ in range(6):
        want.append(rate**steps * want[-1] + 2.0 * 0.01)
    assert_allclose(distances, want, rtol=1e-13)
    warm = float(distances[-1])
    start = theory.equivalent_start(rate, 5.0, warm)
    drift = lambda e0: theory.reverse_bound(rate, steps, steps, M=M, e0=e0, norm=0.0)
    assert_allclose(drift(warm), rate**start * drift(5.0), rtol=1e-12)
    assert theory.reverse_bound(rate, steps, steps, M=M, e0=warm, norm=norm) > rate**steps * norm


def solve_cg(H, b, steps):
    """Conjugate gradients from zero on N systems."""
    x, r = np.zeros_like(b), b.copy()
    p = r.copy()
    for _ in range(steps):
        Hp = np.einsum("nij,nj->ni", H, p)
        curvature, before = np.sum(p * Hp, axis=1), np.sum(r * r, axis=1)
        step = np.where(curvature > 0, before / np.where(curvature > 0, curvature, 1), 0)
        x, r = x + step[:, None] * p, r - step[:, None] * Hp
        after = np.sum(r * r, axis=1)
        p = r + np.where(before > 0, after / np.where(before > 0, before, 1), 0)[:, None] * p
    return x


def frozen():
    """Random x_T near x*, and what the bounds need: M = 1 as ∂_θ∇f(x) = x."""
    p, random = RIDGES, np.random.default_rng(5)
    x = p.solution + random.normal(size=(N, D)) * 10 ** random.uniform(-4, 1, (N, 1))
    e = np.linalg.norm(x - p.solution, axis=1)
    away = lambda v: np.linalg.norm(v - p.derivative, axis=1)
    return p, x, e, away


def test_the_implicit_bound_holds_and_is_attained():
    p, x, e, away = frozen()
    error = away(-np.linalg.solve(p.H, x[..., None])[..., 0])
    bound = np.asarray(theory.implicit_bound(p.mu, M=1.0, e=e))
    assert np.all(error <= bound * (1 + 1e-9) + ROUNDING * p.norm)
    assert np.max(error / bound) > 0.9
    # attained where x_T - x* lies in the direction of the smallest eigenvalue
    assert_allclose(theory.implicit_bound(0.1, M=1.0, e=0.3), abs((1.3 - 1.0) / 0.1))


@pytest.mark.parametrize("n", [0, 1, 3, 20])
def test_bounds_for_n_terms_hold(n):
    p, x, e, away = frozen()
    exact = np.linalg.norm(np.linalg.solve(p.H, x[..., None])[..., 0], axis=1)
    at_x = dict(M=1.0, e=e)
    cg = theory.cg_bound(p.mu, p.L, n, **at_x, norm=exact)
    assert np.all(away(solve_cg(p.H, -x, n)) <= np.asarray(cg) * (1 + 1e-9) + ROUNDING * p.norm)

    # Chebyshev's method on H v = -x: v_n - v = P_n(H) (0 - v)
    chebyshev = theory.chebyshev_bound(p.mu, p.L, n, **at_x, norm=p.norm)
    lam, V = np.linalg.eigh(p.H)
    z = lambda t: (2 * t - (p.L + p.mu)[:, None]) / (p.L - p.mu)[:, None]
    T_n = np.polynomial.chebyshev.Chebyshev.basis(n)
    v = -np.einsum("nji,nj->ni", V, x) / lam * (1 - T_n(z(lam)) / T_n(z(0 * lam)))
    error = away(np.einsum("nij,nj->ni", V, v))
    assert np.all(error <= np.asarray(chebyshev) * (1 + 1e-9) + ROUNDING * p.norm)

    neumann = theory.neumann_bound(p.rate, n, M=p.h, e=e, norm=p.norm)
    v = np.zeros((N, D))
    for _ in range(n):
        v = v - p.h[:, None] * (np.einsum("nij,nj->ni", p.H, v) + x)
    ratio = away(v) / np.asarray(neumann)
    assert np.all(ratio <= 1 + 1e-9) and np.max(ratio) > 0.9


def test_neumann_is_never_worse_than_truncation():
    random = np.random.default_rng(6)
    rate = random.uniform(0, 0.999, 500)
    M, e0, norm = 10 ** random.uniform(-2, 2, (3, 500))
    for n in (1, 5, 60):
        neumann = theory.neumann_bound(rate, n, M=M, e=rate**60 * e0, norm=norm)
        truncated = theory.reverse_bound(rate, 60, n, M=M, e0=e0, norm=norm)
        assert np.all(neumann <= truncated * (1 + 1e-12))


def test_bounds_can_be_compiled_mapped_and_differentiated():
    bound = lambda rate: theory.forward_bound(rate, 7, M=1.0, e0=2.0, delta0=3.0)
    rate = jnp.array([0.5, 0.9])
    slope = jax.jit(jax.vmap(jax.grad(bound)))(rate)
    assert_allclose(slope, 7 * rate**6 * 3 + 7 * 6 * rate**5 * 2, rtol=1e-12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: theory.forward_bound(1.0, 3, M=1, e0=1, delta0=1), "rate=1.0.*\\[0, 1\\)"),
        (lambda: theory.forward_bound(0.5, -3, M=1, e0=1, delta0=1), "steps=-3"),
        (lambda: theory.forward_bound(0.5, 3, M=-1, e0=1, delta0=1), "M=-1"),
        (lambda: theory.forward_bound(0.5, 3, M=1, e0=-1, delta0=1), "e0=-1"),
        (lambda: theory.reverse_bound(0.5, 3, 4, M=1, e0=1, norm=1), "terms=4"),
        (lambda: theory.late_start_bound(0.5, 3, 4, M=1, e0=1, delta0=1), "start=4"),
        (lambda: theory.optimal_start(-0.5, 3, M=1, e0=1, delta0=1), "rate=-0.5"),
        (
            lambda: theory.warm_distances(0.5, 3, e0=1.0, lipschitz=1.0, changes=np.full(1, -1.0)),
            "negative",
        ),
        (lambda: theory.equivalent_start(0.5, 0.0, 1.0), "positive"),
        (lambda: theory.implicit_bound(0.0, M=1, e=1), "mu > 0"),
        (lambda: theory.cg_bound(2.0, 1.0, 3, M=1, e=1, norm=1), "mu=2.0 and L=1.0"),
        (lambda: theory.chebyshev_bound(1.0, 2.0, -1, M=1, e=1, norm=1), "never negative"),
        (lambda: theory.neumann_bound(1.5, 3, M=1, e=1, norm=1), "rate=1.5"),
    ],
)
def test_bad_arguments_say_what_is_allowed(call, message):
    with pytest.raises(ValueError, match=message):
        call()

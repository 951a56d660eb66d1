"""Each clause of what the linear solves promise: right, or named as failed; never finite and wrong.

The oracle is NumPy: a dense solve, or the pseudo-inverse, of the same matrix."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import dargmin
from dargmin import prox
from dargmin.linear import (
    CG,
    GMRES,
    Auto,
    BiCGStab,
    Dense,
    LinearInfo,
    LinearOptions,
    factored,
    solve_linear,
)
from dargmin.linear.forming import materialise_blocks, takes_no_products
from dargmin.status import Status

D = 12
SYMMETRIC = dargmin.Objective(lambda x, K: 0.5 * x @ (K @ x), quadratic=True)
GENERAL = dargmin.Root(lambda x, K: K @ x)
MIXED = Auto(small=2, medium=100)  # at d = 12: CG or GMRES first, and the matrix if that fails
POSITIVE = pytest.mark.parametrize("solver", [CG(), Dense(), MIXED], ids=["CG", "Dense", "Auto"])
EVERY = pytest.mark.parametrize(
    ("problem", "solver"),
    [
        *[(SYMMETRIC, CG()), (SYMMETRIC, Dense()), (SYMMETRIC, MIXED)],
        *[(GENERAL, Dense()), (GENERAL, GMRES()), (GENERAL, BiCGStab())],
    ],
    ids=["CG", "Cholesky", "Auto", "LU", "GMRES", "BiCGStab"],
)


class Found(NamedTuple):
    u: np.ndarray
    info: LinearInfo

    def says(self, status):
        return bool(self.info.status == status)


@eqx.filter_jit
def _solve(problem, K, b, transpose, start, options):
    return solve_linear(problem, b, K, b, transpose=transpose, start=start, options=options)


def linear_solve(problem, K, b, solver=None, *, transpose=False, start=None, preconditioner=None):
    start = None if start is None else jnp.asarray(start)
    options = LinearOptions(solver, preconditioner)
    found = _solve(problem, jnp.asarray(K), jnp.asarray(b), transpose, start, options)
    return Found(np.asarray(found.value), found.info)


def orthogonal(rng, d=D):
    return np.linalg.qr(rng.normal(size=(d, d)))[0]


def symmetric(rng, eigenvalues):
    Q = orthogonal(rng, len(eigenvalues))
    K = (Q * eigenvalues) @ Q.T
    return (K + K.T) / 2


def general(rng, singular_values):
    return orthogonal(rng) * singular_values @ orthogonal(rng)


def assert_close(u, want, error):
    assert np.linalg.norm(u - want) <= error * np.linalg.norm(want)


@POSITIVE
@pytest.mark.parametrize("condition", [1e1, 1e3, 1e6])
def test_a_positive_definite_system_is_solved(solver, condition):
    rng = np.random.default_rng(0)
    K, b = symmetric(rng, np.geomspace(1 / condition, 1, D)), rng.normal(size=D)
    found = linear_solve(SYMMETRIC, K, b, solver)
    assert found.info.ok
    assert np.linalg.norm(b - K @ found.u) <= 1.1e-10 * np.linalg.norm(b)
    # the residual is at most 1e-10, the error κ times that
    assert_close(found.u, np.linalg.solve(K, b), 1.1e-10 * condition)


@pytest.mark.parametrize(
    ("solver", "transpose"),
    [(GMRES(), True), (BiCGStab(), False), (BiCGStab(), True), (Dense(), False), (MIXED, True)],
    ids=["GMRES-T", "BiCGStab", "BiCGStab-T", "LU", "Auto-T"],
)
def test_a_general_system_and_its_transpose_are_solved(solver, transpose):
    rng = np.random.default_rng(1)
    K, b = general(rng, np.geomspace(0.01, 1, D)), rng.normal(size=D)
    found = linear_solve(GENERAL, K, b, solver, transpose=transpose)
    assert found.info.ok
    assert_close(found.u, np.linalg.solve(K.T if transpose else K, b), 1.1e-10 * 100)


@POSITIVE
def test_a_singular_consistent_system_has_the_minimum_norm_answer(solver):
    rng = np.random.default_rng(2)
    K = symmetric(rng, np.r_[np.zeros(4), np.geomspace(0.1, 1, D - 4)])
    b = K @ rng.normal(size=D)
    found = linear_solve(SYMMETRIC, K, b, solver)
    assert found.info.ok
    assert_close(found.u, np.linalg.pinv(K, rcond=1e-10) @ b, 1e-8)


@pytest.mark.parametrize("transpose", [False, True])
def test_a_singular_general_matrix_has_the_answer_of_its_group_inverse(transpose):
    rng = np.random.default_rng(3)
    K = general(rng, np.r_[np.zeros(3), np.geomspace(0.1, 1, D - 3)])
    turned = K.T if transpose else K
    b = turned @ rng.normal(size=D)
    found = linear_solve(GENERAL, K, b, Dense(), transpose=transpose)
    assert found.info.ok
    # K# = K (K³)⁺ K: the singular values of K³ that count are above 1e-4 of the largest
    group = turned @ np.linalg.pinv(turned @ turned @ turned, rcond=1e-9) @ turned
    assert_close(found.u, group @ b, 1e-7)


@POSITIVE
@pytest.mark.parametrize("part", [1.0, 1e-4])
def test_an_inconsistent_system_is_recognised(solver, part):
    rng = np.random.default_rng(4)
    Q, eigenvalues = orthogonal(rng), np.r_[np.zeros(2), np.geomspace(0.1, 1, D - 2)]
    coordinates = np.r_[part, part, np.full(D - 2, 0.3)]  # the first two leave the range
    found = linear_solve(SYMMETRIC, (Q * eigenvalues) @ Q.T, Q @ coordinates, solver)
    assert found.says(Status.inconsistent)


@EVERY
def test_no_solver_calls_an_inconsistent_system_ok(problem, solver):
    rng = np.random.default_rng(5)
    K = symmetric(rng, np.r_[np.zeros(2), np.geomspace(0.1, 1, D - 2)])
    found = linear_solve(problem, K, rng.normal(size=D), solver)
    krylov = isinstance(solver, GMRES | BiCGStab)  # these cannot tell why they failed
    assert found.says(Status.linear_solve_failed if krylov else Status.inconsistent)


@POSITIVE
def test_an_indefinite_hessian_is_recognised(solver):
    rng = np.random.default_rng(6)
    K = symmetric(rng, np.r_[-0.3, np.geomspace(0.1, 1, D - 1)])
    found = linear_solve(SYMMETRIC, K, rng.normal(size=D), solver)
    assert found.says(Status.not_positive_definite)


@EVERY
def test_nonfinite_input_is_named(problem, solver):
    K = symmetric(np.random.default_rng(7), np.geomspace(0.1, 1, D))
    for bad in (np.nan, np.inf):
        b, broken = np.ones(D), K.copy()
        b[3] = broken[2, 2] = bad
        assert linear_solve(problem, K, b, solver).says(Status.nonfinite)
        assert linear_solve(problem, broken, np.ones(D), solver).says(Status.nonfinite)


@EVERY
def test_zero_tiny_and_huge_right_hand_sides_are_solved_alike(problem, solver):
    rng = np.random.default_rng(8)
    K, b = symmetric(rng, np.geomspace(0.01, 1, D)), rng.normal(size=D)
    for dtype, sizes, error in (
        (np.float64, (1e-200, 1.0, 1e200), 1e-8),
        (np.float32, (1e-30, 1.0, 1e30), 1e-3),  # κ = 100 times a residual of 1e-5
    ):
        matrix = K.astype(dtype)
        zero = linear_solve(problem, matrix, np.zeros(D, dtype), solver)
        assert zero.info.ok and not np.any(zero.u)
        for size in sizes:
            found = linear_solve(problem, matrix, (size * b).astype(dtype), solver)
            assert found.info.ok
            assert_close(found.u / size, np.linalg.solve(K, b), error)


@POSITIVE
def test_float32_reaches_three_digits_at_condition_6e4(solver):
    rng = np.random.default_rng(9)
    K = symmetric(rng, np.geomspace(1 / 6e4, 1, D)).astype(np.float32)
    b = rng.normal(size=D).astype(np.float32)
    found = linear_solve(SYMMETRIC, K, b, solver)
    assert found.info.ok
    # κ ε = 7e-3 is what one solve without refinement may lose
    assert_close(found.u, np.linalg.solve(K.astype(float), b.astype(float)), 1e-3)


@EVERY
def test_a_solve_beyond_the_precision_is_not_called_ok(problem, solver):
    rng = np.random.default_rng(10)
    K = symmetric(rng, np.geomspace(1e-9, 1, D)).astype(np.float32)
    found = linear_solve(problem, K, rng.normal(size=D).astype(np.float32), solver)
    assert not found.info.ok  # κ ε = 100: no digit can be right


@pytest.mark.parametrize(
    ("problem", "solver"),
    [(SYMMETRIC, CG(max_steps=3)), (GENERAL, BiCGStab(max_steps=2))],
    ids=["CG", "BiCGStab"],
)
def test_a_spent_budget_is_a_failure(problem, solver):
    rng = np.random.default_rng(11)
    K, b = symmetric(rng, np.geomspace(0.001, 1, D)), rng.normal(size=D)
    assert linear_solve(problem, K, b, solver).says(Status.linear_solve_failed)


def test_preconditioner_and_start_serve_the_transposed_solve():
    rng = np.random.default_rng(12)
    K, b = general(rng, np.geomspace(0.01, 1, D)), rng.normal(size=D)
    inverse = jax.tree_util.Partial(jnp.matmul, jnp.asarray(np.linalg.inv(K)))
    want = np.linalg.solve(K.T, b)
    arguments = dict(solver=BiCGStab(), transpose=True)
    plain = linear_solve(GENERAL, K, b, **arguments)
    perfect = linear_solve(GENERAL, K, b, **arguments, preconditioner=inverse)
    warm = linear_solve(GENERAL, K, b, **arguments, start=want)
    for found in (perfect, warm):
        assert found.info.ok
        assert_close(found.u, want, 1e-8)
        assert 2 * found.info.products < plain.info.products


def test_preconditioner_declared_diagonal_and_start_save_steps_of_cg():
    rng = np.random.default_rng(13)
    scales = np.geomspace(1e-2, 1e2, D)
    K, b = scales[:, None] * symmetric(rng, np.geomspace(0.5, 1, D)) * scales, rng.normal(size=D)
    declared = dargmin.Objective(SYMMETRIC.f, diagonal=lambda x, K: jnp.diag(K), quadratic=True)
    jacobi = jax.tree_util.Partial(lambda h, v: v / h, jnp.diag(jnp.asarray(K)))
    plain = linear_solve(SYMMETRIC, K, b, CG())
    preconditioned = linear_solve(SYMMETRIC, K, b, CG(), preconditioner=jacobi)
    by_problem = linear_solve(declared, K, b, CG())
    warm = linear_solve(declared, K, b, CG(), start=np.linalg.solve(K, b))
    for found in (preconditioned, by_problem, warm):
        assert found.info.ok
        assert_close(found.u, np.linalg.solve(K, b), 1e-6)
    assert by_problem.info.products == preconditioned.info.products
    assert 2 * by_problem.info.products < plain.info.products
    assert warm.info.products < 6  # nothing is left to do but to check


def test_auto_falls_back_on_a_factorisation_where_cg_runs_out_of_steps():
    rng = np.random.default_rng(14)
    b = rng.normal(size=80)
    hard, easy = (symmetric(rng, np.geomspace(low, 1, 80)) for low in (1e-8, 0.1))
    found = linear_solve(SYMMETRIC, hard, b, Auto(small=8))
    assert found.info.ok and found.info.factorisations > 0
    assert_close(found.u, np.linalg.solve(hard, b), 1e-6)  # κ ε = 2e-8
    found = linear_solve(SYMMETRIC, easy, b, Auto(small=8))
    assert found.info.ok and found.info.factorisations == 0


def blocks_of(rng):
    """Three stacked systems of which the second is singular, as a map and as matrices."""
    spectra = np.geomspace(0.1, 1, D), np.r_[np.zeros(4), np.ones(D - 4)], np.geomspace(1e-3, 3, D)
    K = np.stack([symmetric(rng, spectrum) for spectrum in spectra])
    scale = rng.uniform(1, 2, (3, D, 1))
    weighted = scale * K * np.swapaxes(scale, 1, 2)
    return weighted, lambda v: scale * jnp.einsum("kij,kjm->kim", K, scale * v)


def test_stacked_matrices_are_formed_without_a_product_and_others_by_products():
    rng = np.random.default_rng(15)
    like, (K, apply) = jnp.zeros((3, D, 1)), blocks_of(rng)
    assert takes_no_products(apply, like)
    added = lambda v: apply(v) + 2 * v
    assert_close(materialise_blocks(added, like, 3), K + 2 * np.eye(D), 1e-14)
    X = rng.normal(size=(20, D))
    rows = lambda v: jnp.swapaxes(X.T @ jnp.tanh(X), 0, 1)[None] @ (2 * v) + jnp.roll(v, 1, axis=1)
    gram = lambda v: jnp.moveaxis(X.T @ (X @ jnp.moveaxis(v[..., 0], 0, 1)), 1, 0)[..., None]
    assert not takes_no_products(rows, like) and not takes_no_products(gram, like)
    expected = 2 * (X.T @ np.tanh(X)).T + np.roll(np.eye(D), 1, axis=0)
    assert_close(materialise_blocks(rows, like, 3), np.broadcast_to(expected, (3, D, D)), 1e-13)
    both = lambda v: {"a": gram(v["a"]), "b": 3 * v["b"]}
    formed = materialise_blocks(both, {"a": like, "b": jnp.zeros((3, 2))}, 3)
    expected = np.block([[X.T @ X, np.zeros((D, 2))], [np.zeros((2, D)), 3 * np.eye(2)]])
    assert_close(formed, np.broadcast_to(expected, (3, D + 2, D + 2)), 1e-13)
    quadratic = dargmin.Objective(lambda x, c: jnp.sum(x * apply(x)) / 2 - jnp.sum(x * c))
    mode = dargmin.Implicit(Auto(blocks=4))
    with pytest.raises(ValueError, match="first axis of every leaf"):
        dargmin.hypergradient(lambda x, c: jnp.sum(x), quadratic, like, like + 1, mode=mode)


def test_one_factor_for_each_block_serves_singular_ones_too():
    rng = np.random.default_rng(16)
    K, apply = blocks_of(rng)
    x = rng.normal(size=(3, D, 1))
    b = K @ x
    unit = b / np.linalg.norm(b)
    factor = factored(apply, jnp.asarray(b), blocks=3)
    found, info = factor.solve(
        apply, jnp.asarray(unit), symmetric=True, start=None, preconditioner=None, rtol=1e-10
    )
    assert info.ok and factor.singular and not factor.indefinite
    expected = [np.linalg.pinv(k, rcond=1e-10) @ r for k, r in zip(K, unit, strict=True)]
    assert_close(found, np.stack(expected), 1e-8)
    assert not factored(lambda v: apply(v) + v, jnp.asarray(b), blocks=3).singular
    assert factored(lambda v: apply(v) - v, jnp.asarray(b), blocks=3).indefinite


def test_auto_never_forms_a_large_matrix():
    d = 3000
    problem = dargmin.Objective(lambda x, h: 0.5 * jnp.sum(h * x**2), quadratic=True)
    vector = jax.ShapeDtypeStruct((d,), float)
    solve = jax.jit(lambda h, b: solve_linear(problem, b, h, b).value)
    temporary = solve.lower(vector, vector).compile().memory_analysis().temp_size_in_bytes
    assert temporary < 100 * d * 8  # the matrix has d² · 8


def test_cg_refuses_a_general_operator():
    with pytest.raises(ValueError, match=r"Use GMRES\(\), BiCGStab\(\) or Dense\(\)"):
        linear_solve(GENERAL, np.eye(D), np.ones(D), CG())


@pytest.mark.parametrize("solver", [CG(), Dense()], ids=["CG", "Dense"])
def test_statuses_are_batched_under_vmap(solver):
    rng = np.random.default_rng(15)
    K = [symmetric(rng, np.r_[low, np.geomspace(0.1, 1, D - 1)]) for low in (0.1, 0.0, -0.5)]
    b, options = jnp.asarray(rng.normal(size=D)), LinearOptions(solver)
    solve = jax.jit(jax.vmap(lambda K: solve_linear(SYMMETRIC, b, K, b, options=options)))
    found = solve(jnp.asarray(np.stack(K)))
    expected = (Status.ok, Status.inconsistent, Status.not_positive_definite)
    assert all((found.info.status == status)[i] for i, status in enumerate(expected))
    assert_close(found.value[0], np.linalg.solve(K[0], b), 1e-8)


EIGENVALUES = [0.0, 1.0, 0.7, 0.1, 1e-3, 1e-6, -1e-3, -1.0]


@pytest.mark.parametrize("solver", [CG(), Dense()], ids=["CG", "Dense"])
@given(
    spectrum=st.lists(st.sampled_from(EIGENVALUES), min_size=5, max_size=5),
    seed=st.integers(0, 1000),
    consistent=st.booleans(),
)
def test_ok_means_right_and_what_can_be_solved_is_ok(solver, spectrum, seed, consistent):
    rng, spectrum = np.random.default_rng(seed), np.array(spectrum)
    K, b = symmetric(rng, spectrum), rng.normal(size=5)
    b = K @ b if consistent else b
    found = linear_solve(SYMMETRIC, K, b, solver)
    kept = np.abs(spectrum[spectrum != 0])
    if found.info.ok and kept.size:
        condition = kept.max() / kept.min()
        assert_close(found.u, np.linalg.pinv(K, rcond=1e-12) @ b, 1e-9 * condition)
    if min(spectrum) >= 0 and consistent:
        assert found.info.ok
    if min(spectrum) == 0 and not consistent:
        assert found.says(Status.inconsistent)


PENALTIES = {
    "elastic net": prox.elastic_net(lambda theta: 0.2, lambda theta: 0.3),
    "group lasso": prox.group_lasso(lambda theta: jnp.full(3, 0.2), np.repeat(np.arange(3), 2)),
    "box": prox.box(lambda theta: -0.2, lambda theta: 0.3),
    "simplex": prox.simplex(lambda theta: 1.0),
}


@pytest.mark.parametrize("penalty", PENALTIES)
def test_the_symmetric_form_of_a_composite_system_solves_the_original_one(penalty):
    rng = np.random.default_rng(16)
    X, y = jnp.asarray(rng.normal(size=(10, 6))), jnp.asarray(rng.normal(size=10))
    smooth = lambda w, theta: 0.5 * jnp.mean((X @ w - y) ** 2)
    problem = dargmin.Composite(smooth, PENALTIES[penalty], step_size=0.2)
    x, r = jnp.asarray(rng.normal(size=(2, 6)))  # at any point: nothing is special at x*

    @jax.jit
    def both_ways(x, r):
        there = solve_linear(problem, x, 0.0, r, options=LinearOptions(CG()))
        back = solve_linear(problem, x, 0.0, r, transpose=True, options=LinearOptions(CG()))
        return jax.jacfwd(problem.residual)(x, 0.0), there, back

    J, there, back = both_ways(x, r)
    for found, K in ((there, J), (back, J.T)):
        assert found.info.ok
        assert_close(found.value, np.linalg.solve(K, r), 1e-8)

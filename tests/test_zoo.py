"""The zoo's oracles against finite differences, exact arithmetic, scikit-learn and the problems."""

from fractions import Fraction
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose
from sklearn.linear_model import ElasticNet, Lasso, LogisticRegression, Ridge

from dargmin.problems import zoo

RNG = np.random.default_rng(0)
X = RNG.normal(size=(30, 6)) @ np.diag([3.0, 2.0, 1.0, 1.0, 0.5, 0.2])
Y = X @ np.array([1.0, -1.0, 0.0, 2.0, 0.0, 1.0]) + 0.3 * RNG.normal(size=30)
LABELS = (Y > 0.2).astype(int)
CLASSES = np.digitize(Y, [-2.0, 1.0])
WIDE = RNG.normal(size=(10, 25))
SPREAD = RNG.normal(scale=0.5, size=30)  # hyperparameters that differ from each other


class Case(NamedTuple):
    instance: zoo.Instance
    theta: Any


CASES = {
    "dense quadratic": Case(zoo.quadratic(np.geomspace(1e-2, 1, 6)), 0.05),
    "dense quadratic, per coordinate": Case(zoo.quadratic([0, 1, 1, 2, 3, 5]), SPREAD[:6] ** 2),
    "diagonal quadratic": Case(zoo.quadratic(np.geomspace(1e-2, 1, 6), dense=False), 0.05),
    "diagonal quadratic, per coordinate": Case(
        zoo.quadratic([0.0, 1.0, 2.0], dense=False), SPREAD[:3] ** 2
    ),
    "ridge": Case(zoo.ridge(X, Y), -3.0),
    "ridge, per feature": Case(zoo.ridge(X, Y), SPREAD[:6] - 3),
    "ridge, more features than samples": Case(zoo.ridge(WIDE, Y[:10]), -3.0),
    "logistic": Case(zoo.logistic(X, LABELS), -4.0),
    "logistic, per feature": Case(zoo.logistic(X, 2 * LABELS - 1), SPREAD[:6] - 4),
    "multinomial": Case(zoo.multinomial_logistic(X, CLASSES, 3), SPREAD),
    "multinomial, one weight": Case(zoo.multinomial_logistic(X, CLASSES, 3, penalty=0.1), 0.3),
    "lasso": Case(zoo.lasso(X, Y), -1.5),
    "lasso, per feature": Case(zoo.lasso(X, Y), SPREAD[:6] - 2),
    "lasso, more features than samples": Case(zoo.lasso(WIDE, Y[:10]), -1.5),
    "elastic net": Case(zoo.elastic_net(X, Y), np.array([-1.5, -2.0])),
    "elastic net, per feature": Case(zoo.elastic_net(X, Y), SPREAD[:12].reshape(2, 6) - 2),
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


@every_case
def test_the_jacobian_is_that_of_finite_differences_of_the_solution(case):
    def slope(direction, h):
        up, down = (case.instance.solution(case.theta + s * direction) for s in (h, -h))
        return (up - down) / (2 * h)

    got = case.instance.jacobian(case.theta)
    assert got.shape == case.instance.x0.shape + np.shape(case.theta)
    size = np.size(case.theta)
    for i in {0, size // 2, size - 1}:
        direction = (np.arange(size) == i).reshape(np.shape(case.theta)).astype(float)
        # Richardson: the error is h⁴ and rounding / h, 1e-16 and 1e-12, times derivatives of x*
        expected = (4 * slope(direction, 1e-4) - slope(direction, 2e-4)) / 3
        assert_allclose(
            got.reshape(*case.instance.x0.shape, -1)[..., i],
            expected,
            atol=1e-9 * max(1, np.max(abs(expected))),
        )


@every_case
def test_the_solution_and_its_jacobian_solve_the_equations_of_the_problem(case):
    # differentiated by JAX here and by hand in the oracle; dense, so that no solver is involved
    @eqx.filter_jit
    def equations(problem, x, theta):
        return problem.residual(x, theta), jax.jacobian(problem.residual, (0, 1))(x, theta)

    x, theta = jnp.asarray(case.instance.solution(case.theta)), jnp.asarray(case.theta)
    residual, (in_x, in_theta) = equations(case.instance.problem, x, theta)
    assert residual.shape == case.instance.x0.shape
    assert_allclose(residual, np.zeros(x.shape), atol=1e-13)
    expected = np.linalg.solve(
        np.reshape(in_x, (x.size, x.size)), -np.reshape(in_theta, (x.size, theta.size))
    )
    got = case.instance.jacobian(case.theta)
    assert_allclose(got.reshape(expected.shape), expected, rtol=1e-10, atol=1e-12)


@every_case
def test_the_spectrum_bounds_the_eigenvalues_of_the_hessian(case):
    problem = getattr(case.instance.problem, "smooth", case.instance.problem)
    mu, L = case.instance.spectrum(case.theta)
    hessian = jax.jit(jax.jacfwd(problem.residual))
    for point in (case.instance.x0, jnp.asarray(case.instance.solution(case.theta))):
        H = np.reshape(hessian(point, jnp.asarray(case.theta)), (point.size, point.size))
        eigenvalues = np.linalg.eigvalsh(H)
        assert mu <= eigenvalues[0] + 1e-14 * L
        assert eigenvalues[-1] <= L * (1 + 1e-14)
        if problem.is_quadratic(point, case.theta):
            assert_allclose((mu, L), (eigenvalues[0], eigenvalues[-1]), atol=1e-14 * L)


def scikit_learn_ridge(theta):
    return Ridge(alpha=30 * np.exp(theta), fit_intercept=False).fit(X, Y).coef_


def scikit_learn_logistic(theta):
    model = LogisticRegression(
        C=1 / (30 * np.exp(theta)), fit_intercept=False, solver="newton-cholesky", tol=1e-12
    )
    return model.fit(X, LABELS).coef_[0]


def scikit_learn_multinomial(theta):
    model = LogisticRegression(
        C=1 / (30 * 1e-2), fit_intercept=False, solver="newton-cg", tol=1e-12, max_iter=1000
    )
    return model.fit(X, CLASSES, sample_weight=np.exp(theta)).coef_.T


def scikit_learn_lasso(theta):
    model = Lasso(alpha=np.exp(theta), fit_intercept=False, tol=1e-14, max_iter=100_000)
    return model.fit(X, Y).coef_


def scikit_learn_elastic_net(theta):
    l1, l2 = np.exp(theta)
    model = ElasticNet(
        l1 + l2, l1_ratio=l1 / (l1 + l2), fit_intercept=False, tol=1e-14, max_iter=100_000
    )
    return model.fit(X, Y).coef_


@pytest.mark.parametrize(
    ("name", "fit", "accuracy"),
    [
        ("ridge", scikit_learn_ridge, 1e-12),
        ("logistic", scikit_learn_logistic, 1e-9),
        ("multinomial", scikit_learn_multinomial, 1e-6),  # it stops on the objective's value
        ("lasso", scikit_learn_lasso, 1e-7),  # and these two on the duality gap
        ("elastic net", scikit_learn_elastic_net, 1e-7),
    ],
)
def test_scikit_learn_finds_the_same_solution(name, fit, accuracy):
    instance, theta = CASES[name]
    assert_allclose(instance.solution(theta), fit(theta), atol=accuracy)


def solve_exactly(A, b):
    """Solve A x = b in rational arithmetic by Gaussian elimination."""
    rows = [[*map(Fraction, row), Fraction(r)] for row, r in zip(A, b, strict=True)]
    for i in range(len(rows)):
        rows[i:] = sorted(rows[i:], key=lambda row: row[i] == 0)
        for k in range(len(rows)):
            if k != i:
                factor = rows[k][i] / rows[i][i]
                rows[k] = [u - factor * v for u, v in zip(rows[k], rows[i], strict=True)]
    return [rows[i][-1] / rows[i][i] for i in range(len(rows))]


def exact_gram(X, y, penalty):
    """XᵀX / n + penalty I and Xᵀy / n as rational numbers."""
    columns, n = [list(map(Fraction, column)) for column in X.T.tolist()], len(y)
    dot = lambda u, v: sum(Fraction(a) * Fraction(b) for a, b in zip(u, v, strict=True)) / n
    gram = [
        [dot(u, v) + (Fraction(penalty) if i == j else 0) for j, v in enumerate(columns)]
        for i, u in enumerate(columns)
    ]
    return gram, [dot(u, y.tolist()) for u in columns]


def assert_accurate(got, exact, condition):
    """The accuracy that the oracles promise: condition number times rounding of longdouble."""
    rounding = 10 * condition * np.finfo(np.longdouble).eps
    assert_allclose(got, np.array(exact, float), rtol=2e-15 + rounding)


VANDERMONDE = np.vander(np.linspace(0, 1, 14), 8)


@pytest.mark.parametrize("scale", [1e3, 1e5])
def test_ridge_is_accurate_when_ill_conditioned(scale):
    data, y = scale * VANDERMONDE, Y[:14]
    instance = zoo.ridge(data, y)
    mu, L = instance.spectrum(0.0)
    assert L / mu > scale**2 / 2
    gram, gain = exact_gram(data, y, 1)  # e^θ = 1
    w = solve_exactly(gram, gain)
    assert_accurate(instance.solution(0.0), w, L / mu)
    assert_accurate(instance.jacobian(0.0), solve_exactly(gram, [-u for u in w]), L / mu)


@pytest.mark.parametrize("smallest", [1e-6, 1e-9])
def test_a_dense_quadratic_is_accurate_when_ill_conditioned(smallest):
    instance = zoo.quadratic(np.geomspace(smallest, 1, 6), seed=3)
    H, b = (np.asarray(u).tolist() for u in (instance.problem.f.H, instance.problem.f.b))
    x = solve_exactly(H, b)
    assert_accurate(instance.solution(0.0), x, 1 / smallest)
    assert_accurate(instance.jacobian(0.0), solve_exactly(H, [-u for u in x]), 1 / smallest)


def test_an_elastic_net_is_accurate_when_ill_conditioned():
    data, y = 1e3 * VANDERMONDE, 3 * Y[:14]
    instance = zoo.elastic_net(data, y)
    theta = np.zeros(2)  # both penalties 1
    w = instance.solution(theta)
    gram, gain = exact_gram(data, y, 1)
    support, signs = np.flatnonzero(w), [Fraction(int(s)) for s in np.sign(w)]
    restricted = [[gram[i][j] for j in support] for i in support]
    condition = np.linalg.cond(np.array(restricted, float))
    assert 2 <= support.size < w.size and condition > 1e6
    exact = solve_exactly(restricted, [gain[i] - signs[i] for i in support])
    assert_accurate(w[support], exact, condition)
    full = [Fraction(0)] * w.size
    for i, value in zip(support, exact, strict=True):
        full[i] = value
    for i in range(w.size):  # the optimality conditions, exactly
        slope = sum(gram[i][j] * full[j] for j in range(w.size)) - gain[i]
        assert slope == -signs[i] if full[i] else abs(slope) <= 1
    for column, force in enumerate(([signs[i] for i in support], exact)):
        got = instance.jacobian(theta)[support, column]
        assert_accurate(got, solve_exactly(restricted, [-u for u in force]), condition)


def test_a_quadratic_has_the_chosen_spectrum_and_linear_term():
    spectrum = np.geomspace(1e-3, 10, 7)
    for dense in (True, False):
        instance = zoo.quadratic(spectrum, dense=dense)
        assert_allclose(instance.spectrum(0.0), (1e-3, 10), rtol=1e-11)
        assert_allclose(instance.spectrum(2.0), (2.001, 12), rtol=1e-14)
        # the same z in both: with the default b = H z it is the solution
        assert_allclose(instance.solution(0.0), np.random.default_rng(0).normal(size=7), rtol=1e-9)
    b = np.arange(7.0)
    assert_allclose(zoo.quadratic(spectrum, linear=b, dense=False).solution(0.0), b / spectrum)
    H = np.asarray(zoo.quadratic(spectrum).problem.f.H)
    assert_allclose(np.linalg.eigvalsh(H), spectrum, atol=1e-14)
    assert abs(H[0, 1]) > 0.01
    assert not np.allclose(H, zoo.quadratic(spectrum, seed=1).problem.f.H)


def test_float32_data_make_a_float32_problem_and_the_oracle_solves_the_problem_as_rounded():
    data, y = X.astype(np.float32), Y.astype(np.float32)
    theta = jnp.asarray(-2.0, jnp.float32)
    for instance in (zoo.ridge(data, y), zoo.logistic(data, LABELS), zoo.lasso(data, y)):
        x = jnp.asarray(instance.solution(theta), jnp.float32)
        residual = eqx.filter_jit(instance.problem.residual)(x, theta)
        assert (instance.x0.dtype, residual.dtype) == (jnp.float32, jnp.float32)
        assert_allclose(residual, np.zeros(6), atol=2e-6 * instance.spectrum(theta)[1])
    quadratic = zoo.quadratic(np.geomspace(1e-3, 1, 5).astype(np.float32))
    same = zoo.quadratic(np.geomspace(1e-3, 1, 5).astype(np.float32).astype(np.float64))
    assert quadratic.x0.dtype == jnp.float32
    # the same up to the rounding of H, times the condition number
    assert_allclose(quadratic.solution(0.0), same.solution(0.0), atol=1e3 * 1e-6)
    assert not np.array_equal(quadratic.solution(0.0), same.solution(0.0))
    assert zoo.multinomial_logistic(data, CLASSES, 3).x0.dtype == jnp.float32


def test_the_data_are_leaves_that_can_be_mapped_over_and_exchanged_without_compiling_again():
    folds = [zoo.ridge(np.delete(X, i, 0), np.delete(Y, i)) for i in range(3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[fold.problem for fold in folds])
    solutions = jnp.stack([jnp.asarray(fold.solution(-3.0)) for fold in folds])
    residual = eqx.filter_jit(eqx.filter_vmap(lambda problem, x: problem.residual(x, -3.0)))
    assert_allclose(residual(stacked, solutions), np.zeros((3, 6)), atol=1e-13)
    traces = []

    @eqx.filter_jit
    def value(problem, x):
        traces.append(problem)
        return problem.f(x, -3.0)

    for make in (zoo.ridge, zoo.lasso, zoo.elastic_net):
        for y in (Y, Y + 1):
            value(make(X, y).problem, jnp.ones(6))
    assert len(traces) == 3


@every_case
def test_the_programs_of_quadratic_objectives_prove_that_they_are(case, request):
    problem = getattr(case.instance.problem, "smooth", case.instance.problem)
    name = request.node.callspec.id
    expected = "logistic" not in name and "multinomial" not in name
    assert problem.is_quadratic(case.instance.x0, jnp.asarray(case.theta)) == expected


def test_a_penalty_above_the_largest_correlation_leaves_nothing():
    largest = np.log(np.max(abs(X.T @ Y)) / 30)
    instance = zoo.lasso(X, Y)
    assert_allclose(instance.solution(largest + 1e-6), np.zeros(6), atol=0)
    assert_allclose(instance.jacobian(largest + 1e-6), np.zeros(6), atol=0)
    assert np.count_nonzero(instance.solution(largest - 1e-6)) == 1
    with pytest.raises(ValueError, match="on a kink"):
        instance.jacobian(largest)


def test_a_weak_penalty_on_separable_classes_is_no_obstacle():
    features = np.array([[-2.0], [-1.0], [1.0], [3.0]])
    instance = zoo.logistic(features, [0, 0, 1, 1])
    (w,) = instance.solution(-20.0)
    assert w > 10
    margins = np.array([2.0, 1.0, 1.0, 3.0])  # y_i x_i: the derivative of the loss, by hand
    assert_allclose(np.mean(margins / (1 + np.exp(margins * w))), np.exp(-20.0) * w, rtol=1e-12)


TWICE = np.column_stack([X, X[:, 0]])


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: zoo.ridge(X[:, 0], Y), ValueError, r"pass X\[:, None\]"),
        (lambda: zoo.ridge(X[:0], Y[:0]), ValueError, "n >= 1 rows"),
        (lambda: zoo.ridge(X, Y[:, None]), ValueError, "one target for each row"),
        (lambda: zoo.ridge(X, np.where(Y > 1, np.nan, Y)), ValueError, "missing .NaN. entries"),
        (lambda: zoo.ridge([["a", "b"]], [1.0]), ValueError, "Encode categories"),
        (lambda: zoo.ridge(X + 1j, Y), ValueError, "real numbers"),
        (lambda: zoo.logistic(X, Y), ValueError, "two classes"),
        (lambda: zoo.logistic(X, np.ones(30)), ValueError, "two classes"),
        (lambda: zoo.multinomial_logistic(X, CLASSES, 2), ValueError, "from 0 to classes - 1 = 1"),
        (lambda: zoo.multinomial_logistic(X, CLASSES - 1, 3), ValueError, "from 0 to"),
        (lambda: zoo.multinomial_logistic(X, Y, 3), ValueError, "integers"),
        (lambda: zoo.multinomial_logistic(X, CLASSES, 1), ValueError, "at least 2"),
        (lambda: zoo.multinomial_logistic(X, CLASSES, 3, penalty=0.0), ValueError, "positive"),
        (lambda: zoo.lasso(0 * X, Y), ValueError, "X is zero"),
        (lambda: zoo.quadratic([[1.0]]), ValueError, "on one axis"),
        (lambda: zoo.quadratic([]), ValueError, "one or more eigenvalues"),
        (lambda: zoo.quadratic([1.0, -1.0]), ValueError, "smallest entry -1"),
        (lambda: zoo.quadratic([1.0], linear=[1.0, 2.0]), ValueError, "linear has shape"),
        (lambda: zoo.quadratic([0.0, 1.0]).solution(0.0), ValueError, "no unique minimum"),
        (lambda: zoo.quadratic([1.0]).jacobian(-1.0), ValueError, "no unique minimum"),
        (lambda: zoo.ridge(X, Y).solution(np.zeros(5)), ValueError, r"shape \(\) or \(6,\)"),
        (lambda: zoo.ridge(X, Y).jacobian(np.inf), ValueError, "must be finite"),
        (lambda: zoo.elastic_net(X, Y).solution(0.0), ValueError, r"\(2,\) or \(2, 6\)"),
        (lambda: zoo.lasso(TWICE, Y).jacobian(-3.0), (ArithmeticError, ValueError), "kink|depend"),
        (lambda: zoo.ridge(TWICE, Y).solution(-60.0), ArithmeticError, "Raise the penalty"),
    ],
)
def test_bad_input_is_explained(make, error, message):
    with pytest.raises(error, match=message):
        make()

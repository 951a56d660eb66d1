"""What x*(θ) is: a residual F(x, θ) = 0, and the structure of its Jacobian ∂ₓF.

Each class is one equation: its docstring is the equation, `residual` is the equation in code, and
`linear_system` is how to solve ∂ₓF u = r for it."""

import dataclasses
from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float

from dargmin import tree
from dargmin.problems.structure import hessian_is_constant
from dargmin.types import LinearMap, Parameters, Point, PointFunction, ScalarFunction


def identity(v: Any) -> Any:
    """v."""
    return v


def _zero(v: Any) -> Any:
    return tree.zeros_like(v)


def constant(value: Any) -> Any:
    """A number that the user declared, as an array (so that changing it recompiles nothing)."""
    return None if value is None else jnp.asarray(value)


class LinearSystem(eqx.Module):
    """∂ₓF u = r, solved as u = B r + C K⁺ A r.

    For a smooth problem K = ∂ₓF, A = C = I and B = 0; for a composite one K is the symmetric
    operator that replaces the non-symmetric ∂ₓF. All four are linear maps on pytrees like x."""

    operator: LinearMap  # K
    symmetric: bool
    before: LinearMap = identity  # A
    beside: LinearMap = _zero  # B
    after: LinearMap = identity  # C

    def transpose(self, like: Point) -> "LinearSystem":
        """∂ₓFᵀ u = r, solved as u = Bᵀ r + Aᵀ (Kᵀ)⁺ Cᵀ r, on pytrees like `like`."""

        def flip(linear: LinearMap) -> LinearMap:
            if linear is identity or linear is _zero:
                return linear
            transposed = jax.linear_transpose(linear, like)
            return lambda v: transposed(v)[0]

        operator = self.operator if self.symmetric else flip(self.operator)
        return LinearSystem(
            operator, self.symmetric, flip(self.after), flip(self.beside), flip(self.before)
        )


class AbstractProblem(eqx.Module):
    """A residual F(x, θ) whose zero x*(θ) is the solution."""

    @abstractmethod
    def residual(self, x: Point, theta: Parameters) -> Point:
        """F(x, θ), a pytree like x."""

    @abstractmethod
    def linear_system(self, x: Point, theta: Parameters) -> LinearSystem:
        """How to solve ∂ₓF(x, θ) u = r."""

    def aux(self, x: Point, theta: Parameters) -> Any:
        """What the problem's function returns besides its value (`has_aux=True`), or None."""
        return None

    @abstractmethod
    def convert_closures(self, x: Point, theta: Parameters) -> Any:
        """The same problem with all that its functions close over among its leaves.

        Only then can a custom derivative rule see values that are being differentiated, and
        only then do they count as part of θ."""


class Objective(AbstractProblem):
    """x*(θ) = argmin_x f(x, θ), by F(x, θ) = ∇ₓf(x, θ).

    Parameters
    ----------
    f : callable, (x, theta) -> scalar
        May be an `equinox.Module` or `jax.tree_util.Partial` that holds the data in its leaves.
    mu, L : float, optional
        Constants of strong convexity and smoothness in x, where known.
    quadratic : bool, optional
        Whether f is quadratic in x. Proved from the traced program if None.
    diagonal : callable, (x, theta) -> pytree like x, optional
        The diagonal of the Hessian, used to precondition Krylov solvers. Of losses of X w + b and
        separable penalties it is read from the program if None (see `dargmin.linear.scaling`).
    has_aux : bool
        Whether f returns (value, auxiliary data).
    hvp : callable, (x, theta, v) -> pytree like x, optional
        An own product with the Hessian, or with a symmetric stand-in such as the Gauss-Newton
        matrix. It is compared with the Hessian of f once, where a computation begins. If they
        agree it serves everywhere; if not, methods walk with it, and derivatives take the Hessian.
        A problem whose derivatives are to use a stand-in declares it in a `linear_system` of its
        own."""

    f: ScalarFunction
    mu: Float[Array, "*batch"] | None
    L: Float[Array, "*batch"] | None
    quadratic: bool | None = eqx.field(static=True)
    diagonal: Callable | None
    has_aux: bool = eqx.field(static=True)
    hvp: Callable | None
    agrees: Bool[Array, "*batch"] | None = eqx.field(init=False)

    def __init__(
        self,
        f: ScalarFunction,
        *,
        mu: ArrayLike | None = None,
        L: ArrayLike | None = None,
        quadratic: bool | None = None,
        diagonal: Callable | None = None,
        has_aux: bool = False,
        hvp: Callable | None = None,
    ):
        _require_callable(f, "Objective(f)", "f(x, theta) -> scalar")
        self.f = f
        self.mu, self.L = constant(mu), constant(L)
        self.quadratic, self.diagonal, self.has_aux, self.hvp = quadratic, diagonal, has_aux, hvp
        self.agrees = None

    def value(self, x: Point, theta: Parameters) -> Float[Array, ""]:
        """f(x, θ)."""
        out = self.f(x, theta)
        value = jnp.asarray(out[0] if self.has_aux else out)
        if value.shape != ():
            raise ValueError(
                f"Objective(f): f must return a scalar, but returned shape {value.shape}. "
                "Sum or average it; if f returns (value, aux), pass has_aux=True."
            )
        return value

    def aux(self, x: Point, theta: Parameters) -> Any:
        return self.f(x, theta)[1] if self.has_aux else None

    def residual(self, x: Point, theta: Parameters) -> Point:
        return jax.grad(self.value)(x, theta)

    def value_and_residual(self, x: Point, theta: Parameters) -> tuple[Float[Array, ""], Point]:
        """f(x, θ) and ∇ₓf(x, θ), for the price of the gradient."""
        return jax.value_and_grad(self.value)(x, theta)

    def linear_system(self, x: Point, theta: Parameters) -> LinearSystem:
        if self.hvp is None or self.agrees is None:
            return LinearSystem(self.hessian(x, theta), symmetric=True)
        residual = lambda x: self.residual(x, theta)

        def product(v: Point) -> Point:
            own = lambda v: self.curvature(x, theta, v)
            # In reverse: f may have a rule of its own, which knows no other way.
            return jax.lax.cond(self.agrees, own, lambda v: jax.vjp(residual, x)[1](v)[0], v)

        return LinearSystem(product, symmetric=True)

    def hessian(self, x: Point, theta: Parameters) -> LinearMap:
        """v -> ∇²ₓf(x, θ) v, by differentiating f."""
        return jax.linearize(lambda x: self.residual(x, theta), x)[1]

    def curvature(self, x: Point, theta: Parameters, v: Point) -> Point:
        """The product with v that a method walks with: `hvp`, or that with the Hessian."""
        return self.hessian(x, theta)(v) if self.hvp is None else self.hvp(x, theta, v)

    def product_agrees(self, x: Point, theta: Parameters) -> Bool[Array, ""]:
        """Whether `hvp` is the product with the Hessian: on a pseudo-random vector, near x and not
        at it, where they may happen to be equal."""
        x, theta, frozen = tree.stop_gradient((x, theta, self))
        aside = lambda u, draw: u + 0.01 * draw * (1 + jnp.abs(u))
        x, v = jax.tree.map(aside, x, tree.random_like(x, seed=8)), tree.random_like(x, seed=9)
        (true,) = jax.vjp(lambda x: frozen.residual(x, theta), x)[1](v)
        off = tree.norm(tree.sub(frozen.curvature(x, theta, v), true))
        allowed = jnp.sqrt(jnp.asarray(jnp.finfo(off.dtype).eps, off.dtype)) * tree.norm(true)
        return off <= allowed

    def is_quadratic(self, x: Point, theta: Parameters) -> bool:
        """Whether ∇²ₓf is the same at every x: as declared, or proved from the program."""
        if self.quadratic is not None:
            return self.quadratic
        return hessian_is_constant(self.value, x, theta)

    def convert_closures(self, x: Point, theta: Parameters) -> Any:
        hvp, diagonal = self.hvp, self.diagonal
        converted = dataclasses.replace(
            self,
            f=eqx.filter_closure_convert(self.f, x, theta),
            hvp=None if hvp is None else eqx.filter_closure_convert(hvp, x, theta, x),
            diagonal=None if diagonal is None else eqx.filter_closure_convert(diagonal, x, theta),
            quadratic=self.is_quadratic(x, theta),
        )
        return eqx.tree_at(
            lambda p: p.agrees, converted, self.agrees, is_leaf=lambda leaf: leaf is None
        )


class FixedPoint(AbstractProblem):
    """x*(θ) = A(x*(θ), θ), by F(x, θ) = x - A(x, θ).

    Parameters
    ----------
    A : callable, (x, theta) -> pytree like x
    has_aux : bool
        Whether A returns (image, auxiliary data)."""

    A: PointFunction
    has_aux: bool = eqx.field(static=True)

    def __init__(self, A: PointFunction, *, has_aux: bool = False):
        _require_callable(A, "FixedPoint(A)", "A(x, theta) -> a pytree like x")
        self.A, self.has_aux = A, has_aux

    def aux(self, x: Point, theta: Parameters) -> Any:
        return self.A(x, theta)[1] if self.has_aux else None

    def image(self, x: Point, theta: Parameters) -> Point:
        """A(x, θ)."""
        image = self.A(x, theta)
        image = image[0] if self.has_aux else image
        _require_same_structure(image, x, "FixedPoint(A)")
        return image

    def residual(self, x: Point, theta: Parameters) -> Point:
        return tree.sub(x, self.image(x, theta))

    def linear_system(self, x: Point, theta: Parameters) -> LinearSystem:
        _, jacobian = jax.linearize(lambda x: self.residual(x, theta), x)
        return LinearSystem(jacobian, symmetric=False)

    def convert_closures(self, x: Point, theta: Parameters) -> Any:
        return dataclasses.replace(self, A=eqx.filter_closure_convert(self.A, x, theta))


class Root(AbstractProblem):
    """F(x*(θ), θ) = 0.

    Parameters
    ----------
    F : callable, (x, theta) -> pytree like x
    has_aux : bool
        Whether F returns (residual, auxiliary data)."""

    F: PointFunction
    has_aux: bool = eqx.field(static=True)

    def __init__(self, F: PointFunction, *, has_aux: bool = False):
        _require_callable(F, "Root(F)", "F(x, theta) -> a pytree like x")
        self.F, self.has_aux = F, has_aux

    def aux(self, x: Point, theta: Parameters) -> Any:
        return self.F(x, theta)[1] if self.has_aux else None

    def residual(self, x: Point, theta: Parameters) -> Point:
        value = self.F(x, theta)
        value = value[0] if self.has_aux else value
        _require_same_structure(value, x, "Root(F)")
        return value

    def linear_system(self, x: Point, theta: Parameters) -> LinearSystem:
        _, jacobian = jax.linearize(lambda x: self.residual(x, theta), x)
        return LinearSystem(jacobian, symmetric=False)

    def convert_closures(self, x: Point, theta: Parameters) -> Any:
        return dataclasses.replace(self, F=eqx.filter_closure_convert(self.F, x, theta))


class Composite(AbstractProblem):
    """x*(θ) = argmin_x f(x, θ) + g(x, θ), by F(x, θ) = (x - prox_{hg}(x - h ∇ₓf(x, θ), θ)) / h.

    Parameters
    ----------
    f : callable, (x, theta) -> scalar
        The smooth part.
    prox : callable, (v, theta, step) -> pytree like x
        argmin_x ½‖x - v‖² + step g(x, θ); `dargmin.prox` has the usual ones.
    step_size : float, optional
        h, at most 1/L of the smooth part. Estimated (once, where a solve begins) if None.
    has_aux : bool
        Whether f returns (value, auxiliary data)."""

    f: ScalarFunction
    prox: Callable
    step_size: Float[Array, "*batch"] | None
    has_aux: bool = eqx.field(static=True)

    def __init__(
        self,
        f: ScalarFunction,
        prox: Callable,
        step_size: ArrayLike | None = None,
        *,
        has_aux: bool = False,
    ):
        _require_callable(f, "Composite(f, prox)", "f(x, theta) -> scalar")
        _require_callable(prox, "Composite(f, prox)", "prox(v, theta, step) -> a pytree like x")
        self.f, self.prox, self.step_size = f, prox, constant(step_size)
        self.has_aux = has_aux

    def aux(self, x: Point, theta: Parameters) -> Any:
        return self.smooth.aux(x, theta)

    @property
    def smooth(self) -> Objective:
        """The smooth part, as a problem of its own."""
        return Objective(self.f, has_aux=self.has_aux)

    @property
    def step(self) -> Float[Array, "*batch"]:
        """h, a constant of every derivative."""
        if self.step_size is None:
            raise ValueError(
                "Composite(f, prox) has no step size yet. dargmin.solve and dargmin.certify "
                "estimate it; to call `residual` yourself, give Composite(f, prox, step_size=1/L)."
            )
        return jax.lax.stop_gradient(self.step_size)

    def forward(self, x: Point, theta: Parameters) -> Point:
        """v = x - h ∇ₓf(x, θ), where the prox is evaluated."""
        return tree.axpy(-self.step, self.smooth.residual(x, theta), x)

    def proximal_step(self, x: Point, theta: Parameters) -> Point:
        """prox_{hg}(x - h ∇ₓf(x, θ), θ)."""
        image = self.prox(self.forward(x, theta), theta, self.step)
        _require_same_structure(image, x, "Composite(f, prox)")
        return image

    def residual(self, x: Point, theta: Parameters) -> Point:
        return tree.scale(1 / self.step, tree.sub(x, self.proximal_step(x, theta)))

    def linear_system(self, x: Point, theta: Parameters) -> LinearSystem:
        """K = P - P² + hPHP, A = hP(I - hH), B = hI, C = P, with P = ∂prox and H = ∇²f.

        P is symmetric for any convex g, and 0 ⪯ P ⪯ I, so that K is symmetric and positive
        semidefinite, and the system is consistent whenever the derivative exists."""
        h = self.step
        _, P = jax.linearize(lambda v: self.prox(v, theta, h), self.forward(x, theta))
        H = self.smooth.linear_system(x, theta).operator

        def operator(w: Point) -> Point:
            Pw = P(w)
            return tree.add(P(tree.axpy(h, H(Pw), tree.scale(-1.0, Pw))), Pw)

        def before(r: Point) -> Point:
            return tree.scale(h, P(tree.axpy(-h, H(r), r)))

        return LinearSystem(operator, True, before, lambda r: tree.scale(h, r), P)

    def convert_closures(self, x: Point, theta: Parameters) -> Any:
        step = jnp.ones((), tree.dtype(x)) if self.step_size is None else self.step_size
        return dataclasses.replace(
            self,
            f=eqx.filter_closure_convert(self.f, x, theta),
            prox=eqx.filter_closure_convert(self.prox, x, theta, step),
        )


def _require_callable(function: Any, where: str, signature: str) -> None:
    if not callable(function):
        raise ValueError(
            f"{where} needs a function {signature}, but got {type(function).__name__}."
        )


def _require_same_structure(image: Any, x: Any, where: str) -> None:
    got, want = jax.eval_shape(lambda: (image, x))
    if jax.tree.structure(got) == jax.tree.structure(want):
        pairs = zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True)
        if all(a.shape == b.shape and a.dtype == b.dtype for a, b in pairs):
            return
    raise ValueError(
        f"{where}: the function must return a pytree like x, with the same shapes and dtypes, "
        f"but x is {want} and it returned {got}."
    )

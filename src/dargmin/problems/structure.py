"""Structure that is proved from the traced program, never guessed."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal
from jax.interpreters import partial_eval

from dargmin.types import Parameters, Point, ScalarFunction

_SMOOTH = frozenset([
    "add", "add_any", "sub", "mul", "div", "neg", "square", "integer_pow", "rsqrt", "exp",
    "exp2", "expm1", "log", "log1p", "logistic", "tanh", "sin", "cos", "tan", "asin", "acos",
    "atan", "sinh", "cosh", "asinh", "acosh", "atanh", "erf", "erfc", "erf_inv", "lgamma",
    "digamma", "polygamma", "bessel_i0e", "bessel_i1e", "igamma", "igammac", "igamma_grad_a",
    "regularized_incomplete_beta", "dot_general", "conv_general_dilated", "reduce_sum",
    "reduce_prod", "reduce_window_sum", "cumsum", "cumprod", "cumlogsumexp", "cholesky", "lu",
    "lu_pivots_to_permutation", "triangular_solve", "tridiagonal_solve", "fft", "reshape",
    "squeeze", "expand_dims", "transpose", "broadcast_in_dim", "slice", "concatenate",
    "split", "pad", "rev", "copy", "copy_p", "convert_element_type", "reduce_precision",
    "stop_gradient", "real", "imag", "complex", "conj", "optimization_barrier", "psum",
    "mul_no_nan",
])  # fmt: skip
"""Primitives with derivatives of every order wherever they are defined. `sqrt` and `pow` are none:
‖x‖ has a kink at 0."""

_INDEXING = {
    "gather": slice(1, 2),
    "scatter": slice(1, 2),
    "scatter-add": slice(1, 2),
    "scatter_add": slice(1, 2),
    "scatter-mul": slice(1, 2),
    "scatter_mul": slice(1, 2),
    "dynamic_slice": slice(1, None),
    "dynamic_update_slice": slice(2, None),
    "select_n": slice(0, 1),
}
"""Primitives that are smooth, and even linear, unless x is among these inputs."""

_COMPARISONS = frozenset(["eq", "ne", "lt", "le", "gt", "ge"])


def hessian_is_constant(value: ScalarFunction, x: Point, theta: Parameters) -> bool:
    """Whether f is quadratic: x does not occur in the program of the Hessian-vector product, and
    none of those of f and of its gradient decides anything by x.

    A proof, not a test at sample points: dead code is eliminated from the program of
    v ↦ ∂ₓ∇f(x, θ) v, and f is piecewise quadratic if none of x is left; the second condition leaves
    one piece. May say no to a quadratic that is written in a way that hides it."""

    def products(x: Point, v: Point, theta: Parameters) -> Any:
        gradient = lambda x: jax.value_and_grad(value)(x, theta)
        pieces, (_, product) = jax.jvp(gradient, (x,), (v,))
        return product, pieces

    program, count = _trace(products, (x, x), theta)
    d, outputs = len(jax.tree.leaves(x)), len(program.outvars)
    _, used = partial_eval.dce_jaxpr(program, [i < d for i in range(outputs)])
    if any(used[:d]):
        return False
    return not _decides(program, [i >= d for i in range(outputs)], [i < d for i in range(count)])


def piecewise(function: Callable, x: Point, theta: Parameters) -> bool:
    """Whether the program of (x, θ) ↦ function(x, θ) may have pieces in x: it compares, sorts,
    rounds or takes the absolute value of what depends on x, or does with it what is not known to be
    smooth.

    False is a proof that function is smooth in x wherever it is defined; true says only that there
    may be kinks, for logsumexp subtracts a maximum and has none. Where it is NaN or infinite does
    not count as a piece."""
    program, count = _trace(lambda x, theta: function(x, theta), (x,), theta)
    d = len(jax.tree.leaves(x))
    return _decides(program, [True] * len(program.outvars), [i < d for i in range(count)])


def _trace(function: Callable, points: tuple[Point, ...], theta: Parameters) -> tuple[Any, int]:
    """The program of function(*points, theta), whose first inputs are the leaves of the points,
    and how many inputs it has."""
    dynamic, static = eqx.partition(theta, eqx.is_array)

    def arrays(points: tuple[Point, ...], dynamic: Any) -> Any:
        out = function(*points, eqx.combine(dynamic, static))
        return eqx.filter(out, eqx.is_array)

    program = jax.make_jaxpr(arrays)(points, dynamic).jaxpr
    return program, len(program.invars)


def _decides(program: Any, outputs: list[bool], moving: list[bool]) -> bool:
    """Whether these outputs of a program take a decision by those inputs that are moving."""
    live, used = partial_eval.dce_jaxpr(program, outputs)
    try:
        _follow(live, [m for m, u in zip(moving, used, strict=True) if u])
    except _Decision:
        return True
    return False


class _Decision(Exception):
    """A primitive that is not smooth has x among its inputs."""


def _follow(program: Any, moving: list[bool]) -> list[bool]:
    """Which outputs of a program move with its inputs, or _Decision."""
    moves = dict.fromkeys(program.constvars, False)
    moves |= dict(zip(program.invars, moving, strict=True))
    read = lambda v: not isinstance(v, Literal) and moves[v]
    for equation in program.eqns:
        inputs = [read(v) for v in equation.invars]
        outputs = _image(equation, inputs) if any(inputs) else [False] * len(equation.outvars)
        moves |= zip(equation.outvars, map(_moves, equation.outvars, outputs), strict=True)
    return [read(v) for v in program.outvars]


def _moves(variable: Any, moves: bool) -> bool:
    """Integers count as constant: what a smooth primitive returns beside (the pivots of a
    factorisation), or what a decision, which was found already, would have returned."""
    return moves and jnp.issubdtype(variable.aval.dtype, jnp.inexact)


def _image(equation: Any, inputs: list[bool]) -> list[bool]:
    """Which outputs of an equation move with its inputs, or _Decision."""
    name, params = equation.primitive.name, equation.params
    everything = [True] * len(equation.outvars)
    if name in _INDEXING:
        if any(inputs[_INDEXING[name]]):
            raise _Decision
        return everything
    if name == "is_finite" or (name in _COMPARISONS and _is_about_nan_or_infinity(equation)):
        return [False]
    if name in _SMOOTH and jnp.issubdtype(equation.outvars[0].aval.dtype, jnp.inexact):
        return everything
    if name in _CONTROL:
        return _CONTROL[name](params, inputs)
    if name == "custom_jvp_call" and _is_logaddexp(equation):
        return everything
    for key in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        program = getattr(params.get(key), "jaxpr", params.get(key))
        if program is not None and len(program.invars) == len(inputs):
            return _follow(program, inputs)
    raise _Decision


def _is_about_nan_or_infinity(equation: Any) -> bool:
    """x != x, or a comparison with ±∞."""
    a, b = equation.invars
    infinite = [isinstance(v, Literal) and np.all(np.isinf(v.val)) for v in (a, b)]
    return a is b or any(infinite)


def _is_logaddexp(equation: Any) -> bool:
    """Whether a call has the program of log(eᵃ + eᵇ), which is smooth though it is computed by
    cases: that of the logistic loss."""
    called, avals = equation.params["call_jaxpr"], [v.aval for v in equation.invars]
    if len(avals) != 2 or all(e.primitive.name != "log1p" for e in called.jaxpr.eqns):
        return False
    like = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in avals]
    equations = jax.make_jaxpr(jnp.logaddexp)(*like).jaxpr.eqns
    return any(str(e.params.get("call_jaxpr")) == str(called) for e in equations)


def _scan(params: Any, inputs: list[bool]) -> list[bool]:
    body, consts, carries = params["jaxpr"].jaxpr, params["num_consts"], params["num_carry"]
    fixed, carry = inputs[:consts], inputs[consts : consts + carries]
    rest = inputs[consts + carries :]
    step = lambda carry: _follow(body, [*fixed, *carry, *rest])
    carry = _grow(lambda carry: step(carry)[:carries], carry)
    return [*carry, *step(carry)[carries:]]


def _while(params: Any, inputs: list[bool]) -> list[bool]:
    """A loop that x may end sooner or later has as many pieces as ends: the condition compares."""
    tests, consts = params["cond_nconsts"], params["body_nconsts"]
    fixed, carry = inputs[tests : tests + consts], inputs[tests + consts :]
    carry = _grow(lambda carry: _follow(params["body_jaxpr"].jaxpr, [*fixed, *carry]), carry)
    _follow(params["cond_jaxpr"].jaxpr, [*inputs[:tests], *carry])
    return carry


def _cond(params: Any, inputs: list[bool]) -> list[bool]:
    if inputs[0]:
        raise _Decision
    branches = [_follow(branch.jaxpr, inputs[1:]) for branch in params["branches"]]
    return [any(outputs) for outputs in zip(*branches, strict=True)]


def _linear_solve(params: Any, inputs: list[bool]) -> list[bool]:
    """The solution is as smooth as the matrix and the right-hand side; how it is solved for does
    not matter."""
    matvec, consts = params["jaxprs"].matvec, params["const_lengths"].matvec
    rhs = inputs[sum(params["const_lengths"]) :]
    _follow(matvec.jaxpr, [*inputs[:consts], *[True] * len(rhs)])
    return [True] * len(rhs)


def _grow(step: Callable[[list[bool]], list[bool]], carry: list[bool]) -> list[bool]:
    """What of a carry moves in the end, if `step` says what moves after a step."""
    while (grown := list(map(_either, carry, step(carry)))) != carry:
        carry = grown
    return carry


def _either(a: bool, b: bool) -> bool:
    return a or b


_CONTROL = {"scan": _scan, "while": _while, "cond": _cond, "custom_linear_solve": _linear_solve}

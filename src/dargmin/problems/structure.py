"""Structure that is proved from the traced program, never guessed."""

from typing import Any

import equinox as eqx
import jax
from jax.interpreters import partial_eval

from dargmin.types import Parameters, Point, PointFunction


def hessian_is_constant(gradient: PointFunction, x: Point, theta: Parameters) -> bool:
    """Whether x does not occur in the program of the Hessian-vector product.

    A proof, not a test at sample points: dead code is eliminated from the program of
    v ↦ ∂ₓ∇f(x, θ) v, and f is quadratic if none of x is left. May say no to a quadratic that is
    written in a way that hides it."""
    leaves, treedef = jax.tree.flatten(x)
    dynamic, static = eqx.partition(theta, eqx.is_array)

    def product(flat: list[Any], tangents: list[Any], dynamic: Any) -> list[Any]:
        theta = eqx.combine(dynamic, static)
        point, v = jax.tree.unflatten(treedef, flat), jax.tree.unflatten(treedef, tangents)
        return jax.tree.leaves(jax.jvp(lambda x: gradient(x, theta), (point,), (v,))[1])

    program = jax.make_jaxpr(product)(leaves, leaves, dynamic).jaxpr
    _, used = partial_eval.dce_jaxpr(program, [True] * len(program.outvars))
    return not any(used[: len(leaves)])

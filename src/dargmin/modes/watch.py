"""Derivatives that are not finite raise: identities around a solve that look at what passes."""

from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from dargmin import tree
from dargmin.status import DargminError


class Watch:
    """One solve that is being differentiated: what passed into its derivative, and who can say why
    the derivative failed.

    θ goes in through `inputs`, x comes out through `outputs`. A tangent is kept on its way in and
    looked at on its way out; a cotangent the other way round. Outside of jit the looking is done
    in Python, where an exception of ours reaches the caller as it is."""

    def __init__(self, sentence: str, explain: Callable[["Watch"], str] | None):
        self.sentence, self.explain = sentence, explain
        self.points: dict[tuple[str, int], Any] = {}
        self.passed: dict[tuple[str, int], Any] = {}

    def inputs(self, arguments: Any) -> Any:
        """The arguments, whose cotangents are looked at."""
        return self._apply(_input, "in", arguments)

    def outputs(self, results: Any) -> Any:
        """The results, whose tangents are looked at."""
        return self._apply(_output, "out", results)

    def why(self) -> str:
        """The sentence of the error."""
        seen = jnp.asarray([bool(tree.all_finite(v)) for v in self.passed.values()])
        if not bool(jnp.all(seen)):
            return (
                "The derivative is NaN or infinite because what it is multiplied by is: look at "
                "the outer function's own derivative at this solution, or at the tangent given."
            )
        return self.sentence if self.explain is None else self.explain(self)

    def _apply(self, identity: Any, place: str, values: Any) -> Any:
        leaves, structure = jax.tree.flatten(values)
        # One leaf at a time: together, constants among them would count as differentiated.
        leaves = [
            identity(leaf, self, (place, i)) if is_differentiable(leaf) else leaf
            for i, leaf in enumerate(leaves)
        ]
        return jax.tree.unflatten(structure, leaves)


def is_differentiable(leaf: Any) -> bool:
    """Whether a leaf may carry a derivative."""
    return isinstance(leaf, Tracer) and eqx.is_inexact_array(leaf)


def is_staged() -> bool:
    """Whether a program is being traced that runs later (jit, scan), not computed at once."""
    return isinstance(jnp.add(0, 0), Tracer)


@partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def _input(u: Any, watch: Watch, place: tuple[str, int]) -> Any:
    return u


@_input.defjvp
def _input_jvp(watch: Watch, place: tuple[str, int], primals: Any, tangents: Any) -> Any:
    _keep(watch.points, place, primals[0])
    return _input(*primals, watch, place), keep_p.bind(*tangents, watch=watch, place=place)


@partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def _output(u: Any, watch: Watch, place: tuple[str, int]) -> Any:
    return u


@_output.defjvp
def _output_jvp(watch: Watch, place: tuple[str, int], primals: Any, tangents: Any) -> Any:
    _keep(watch.points, place, primals[0])
    return _output(*primals, watch, place), look_p.bind(*tangents, watch=watch, place=place)


def _keep(record: dict, place: tuple[str, int], value: Any) -> None:
    if not isinstance(value, Tracer):
        record[place] = value  # as it is: a JAX function would trace it here


keep_p, look_p = Primitive("dargmin_keep"), Primitive("dargmin_look")
"""Two identities, each the transpose of the other: keep what passes, and raise if not finite."""


@keep_p.def_impl
def _keep_impl(u: Any, *, watch: Watch, place: tuple[str, int]) -> Any:
    _keep(watch.passed, place, u)
    return u


@look_p.def_impl
def _look_impl(u: Any, *, watch: Watch, place: tuple[str, int]) -> Any:
    if not bool(_all_finite(u)):
        raise DargminError(watch.why(), None)
    return u


_all_finite = jax.jit(tree.all_finite)


def _look_later(u: Any, *, watch: Watch, place: tuple[str, int]) -> Any:
    return eqx.error_if(u, ~tree.all_finite(u), watch.sentence)


def _linear(primitive: Primitive, transposed: Primitive) -> None:
    def transpose(cotangent: Any, u: Any, **how: Any) -> list[Any]:
        zero = isinstance(cotangent, ad.Zero)
        return [cotangent if zero else transposed.bind(cotangent, **how)]

    def batch(arguments: Any, axes: Any, **how: Any) -> tuple[Any, int]:
        u = jnp.moveaxis(arguments[0], axes[0], 0)
        return primitive.bind(u, **how), 0

    primitive.def_abstract_eval(lambda u, **how: u)
    ad.deflinear2(primitive, transpose)
    batching.primitive_batchers[primitive] = batch


_linear(keep_p, look_p)
_linear(look_p, keep_p)
mlir.register_lowering(keep_p, mlir.lower_fun(lambda u, **how: u, multiple_results=False))
mlir.register_lowering(look_p, mlir.lower_fun(_look_later, multiple_results=False))

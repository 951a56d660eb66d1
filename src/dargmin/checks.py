"""What a function that the user gave cannot take, said in a sentence that names the argument.

Nothing is tried beforehand, which would trace every function once more on every call. Where a
computation fails, the functions are tried on shapes alone, to find the argument to blame."""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.errors import JAXTypeError

from dargmin import show, tree
from dargmin.problems import AbstractProblem, Composite

_P = ParamSpec("_P")
_R = TypeVar("_R")

_RAISED = (TypeError, ValueError, AttributeError, LookupError)
"""What a function raises on an argument of the wrong kind; errors of JAX's are among them."""


def blames_arguments(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """A public function that says which of its arguments does not fit, where one does not.

    It has arguments called problem, theta and x0 (or x), and perhaps outer.

    Raises
    ------
    ValueError
        If the problem's function does not take x and theta, or outer gives no real scalar."""

    @functools.wraps(function)
    def wrapped(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            return function(*args, **kwargs)
        except _RAISED as error:
            if not (_ours(error) or isinstance(error, JAXTypeError)):
                _blame(_arguments(function, args, kwargs), error)
            raise

    return wrapped


def _arguments(function: Callable, args: Any, kwargs: Any) -> dict[str, Any]:
    """The arguments by name; none where they do not fit the signature."""
    try:
        return inspect.signature(function).bind(*args, **kwargs).arguments
    except TypeError:
        return {}


def check_outer(outer: Any) -> None:
    """Raise ValueError unless φ can be called."""
    if not callable(outer):
        raise ValueError(
            f"outer must be a function φ(x, theta) -> scalar, but is {type(outer).__name__}."
        )


def check_theta(theta: Any) -> None:
    """Raise ValueError unless θ has something to differentiate with respect to."""
    if not jax.tree.leaves(eqx.filter(theta, eqx.is_inexact_array)):
        raise ValueError("theta has no floating-point leaf to differentiate with respect to.")


def check_like(value: Any, like: Any, name: str, other: str) -> None:
    """Raise ValueError unless two pytrees have the same structure and shapes."""
    got, want = (jax.tree.map(jnp.shape, part) for part in (value, like))
    if got != want:
        raise ValueError(
            f"{name} does not fit {other}: it is {_shapes(value)}, and {other} is {_shapes(like)}."
        )


def _blame(arguments: dict[str, Any], error: Exception) -> None:
    """Raise the ValueError that explains the error, if it comes from an argument."""
    problem, name = arguments.get("problem"), "x0" if "x0" in arguments else "x"
    if not isinstance(problem, AbstractProblem):
        return
    x, theta = tree.as_point(arguments.get(name), name), tree.as_arrays(arguments.get("theta"))
    if isinstance(problem, Composite) and problem.step_size is None:
        problem = dataclasses.replace(problem, step_size=jnp.ones(()))
    what = f"The function of the {type(problem).__name__}"
    _try(problem.residual, x, theta, f"{what} cannot take {name} and theta as x and theta", error)
    outer = arguments.get("outer")
    if outer is None:
        return
    value = _try(outer, x, theta, f"outer cannot take x (like {name}) and theta", error)
    if not (_is_array(value) and value.shape == () and jnp.issubdtype(value.dtype, jnp.floating)):
        raise ValueError(
            f"outer must return one real number, φ(x, theta), but it returned {_shapes(value)}. "
            "Sum or average it, or call hypergradient for each of its entries."
        ) from error


def _try(function: Callable, x: Any, theta: Any, complaint: str, error: Exception) -> Any:
    """function(x, θ) on shapes alone; a ValueError with the complaint if it raises."""
    try:
        return eqx.filter_eval_shape(function, x, theta)
    except _RAISED as cause:
        if _ours(cause) or isinstance(cause, JAXTypeError):
            raise
        said = str(cause).strip().split("\n")[0]
        raise ValueError(
            f"{complaint}: these are {_shapes(x)} and {_shapes(theta)}, and it raised "
            f"{type(cause).__name__}: {said}"
        ) from error


def _ours(error: BaseException) -> bool:
    """Whether an error is a ValueError of this package, which says what it has to already."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    module = "" if frame is None else str(frame.tb_frame.f_globals.get("__name__", ""))
    return isinstance(error, ValueError) and module.split(".")[0] == "dargmin"


def _is_array(value: Any) -> bool:
    return hasattr(value, "shape") and hasattr(value, "dtype")


def _shapes(values: Any) -> str:
    """The shape and dtype of every leaf."""
    shape = lambda u: jax.ShapeDtypeStruct(u.shape, u.dtype) if _is_array(u) else u
    return show.numbers(jax.tree.map(shape, values))

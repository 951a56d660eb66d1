"""Running a traced linear program an equation at a time, on whatever stands for its input."""

from collections.abc import Callable
from typing import Any

from jax.extend.core import ClosedJaxpr, Literal, jaxpr_as_fun

_CALLS = ("jit", "pjit", "closed_call")


def evaluate(
    program: ClosedJaxpr, arguments: list[Any], is_moving: Callable, image: Callable
) -> list[Any]:
    """The outputs of a program. What its equations make of constants is computed; of inputs for
    which `is_moving` holds, it is `image(equation, inputs, run)`, a list of outputs, where `run` is
    the equation as a function of its inputs. Calls are entered."""
    known: dict[Any, Any] = dict(zip(program.jaxpr.constvars, program.consts, strict=True))
    known |= dict(zip(program.jaxpr.invars, arguments, strict=True))
    read = lambda v: v.val if isinstance(v, Literal) else known[v]
    for equation in program.jaxpr.eqns:
        inputs = [read(v) for v in equation.invars]
        run = _as_function(program.jaxpr, equation)
        if not any(map(is_moving, inputs)):
            outputs = run(*inputs)
        elif equation.primitive.name in _CALLS:
            outputs = evaluate(equation.params["jaxpr"], inputs, is_moving, image)
        else:
            outputs = image(equation, inputs, run)
        known |= zip(equation.outvars, outputs, strict=True)
    return [read(v) for v in program.jaxpr.outvars]


def _as_function(program: Any, equation: Any) -> Callable:
    """One equation as a function of all its inputs, literals included."""
    variables = [v for v in equation.invars if not isinstance(v, Literal)]

    def run(*inputs: Any) -> list[Any]:
        alone = program.replace(
            constvars=(), invars=variables, outvars=equation.outvars, eqns=[equation],
            effects=equation.effects,
        )  # fmt: skip
        pairs = zip(equation.invars, inputs, strict=True)
        values = [value for v, value in pairs if not isinstance(v, Literal)]
        return jaxpr_as_fun(ClosedJaxpr(alone, ()))(*values)

    return run

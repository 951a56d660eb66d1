"""One word for how a computation ended: the statuses, and the errors they raise."""

from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

_Result = TypeVar("_Result")


class Status(eqx.Enumeration):
    """How a computation ended. `status == Status.ok` is a boolean array.

    Under `vmap` a status has the batch's shape. `Status[status]` is the message."""

    ok = "ok"
    accuracy_not_reached = (
        "The requested accuracy was not reached within the budget. Raise `steps`, loosen `rtol` "
        "or give `atol`; in float32, enable float64 with jax.config.update('jax_enable_x64', True)."
    )
    not_converged = (
        "The inner solve did not converge: every step was spent before the residual fell to the "
        "tolerance. Raise `steps`, loosen `tol`, or choose a faster method."
    )
    linear_solve_failed = (
        "The linear solve failed: its true residual is not small. Usual causes: an ill-conditioned "
        "Hessian (add regularisation, or a preconditioner), float32, or an operator that is not "
        "the Jacobian of the residual."
    )
    inconsistent = (
        "The linear system is singular and inconsistent: the right-hand side leaves the range of "
        "the Hessian, so the derivative does not exist. Add regularisation, or ask only for "
        "derivatives of quantities that the solution determines."
    )
    not_positive_definite = (
        "The Hessian is not positive semidefinite at the solution: this is no minimum. Start "
        "elsewhere, or pose the problem as dargmin.Root(F) if any stationary point will do."
    )
    nonfinite = (
        "Infinite or NaN values appeared. Usual causes: a step size above 2/L, NaN in the data, "
        "or a start outside the domain of the objective."
    )
    weakly_active = (
        "A coordinate is weakly active: it sits on the kink of the prox, where the derivative "
        "jumps, and this is the derivative of one side only. Move theta slightly, or treat the "
        "result as one-sided."
    )
    nonsmooth = (
        "The solution lies on a kink of the function (abs, max, where, sort ... of x), where the "
        "derivative jumps or does not exist. Pose the part with the kink as the prox of a "
        "dargmin.Composite, or smooth it."
    )
    degenerate = (
        "The solution is degenerate: the Jacobian loses rank there and nowhere near it, as that "
        "of (x - theta)**3 does, so that the implicit function theorem says nothing about its "
        "derivative. Add regularisation, or pose the problem without the multiple root."
    )
    unbounded = (
        "The objective falls without end: it has no minimum that the iterates approach. Add "
        "regularisation or bounds, and check the sign of the objective."
    )
    diverged = (
        "The derivative that this mode computes diverges: its series or its iterations do not "
        "contract here. Give a smaller step size, or use Implicit()."
    )
    steps_spent = (
        "The steps ended, spent or stopped by a callback, before the gradient fell to the "
        "tolerance: the result is the best so far, and not known to be stationary. Raise `steps`, "
        "or loosen `gtol`."
    )


class DargminError(RuntimeError):
    """A result whose status is not ok. `.result` holds everything that was computed."""

    def __init__(self, message: str, result: Any):
        super().__init__(message)
        self.result = result


def is_ok(status: Any) -> Bool[Array, "*batch"]:
    """Whether a status, or each status of a batch, is ok."""
    return status == Status.ok


def first_failure(*statuses: Any) -> Any:
    """The first of the statuses that is not ok, or ok."""
    combined = statuses[-1]
    for status in reversed(statuses[:-1]):
        combined = Status.where(is_ok(status), combined, status)
    return combined


def describe(status: Any) -> str:
    """The messages of a status that is not traced, each once."""
    values = np.unique(np.asarray(status._value))
    messages = [Status._index_to_message[int(value)] for value in values if int(value) != 0]
    return " | ".join(messages) if messages else "ok"


def raise_if_failed(result: _Result, *, detail: str = "") -> _Result:
    """Return `result`, or raise `DargminError` if its `.status` is not ok anywhere.

    Inside `jit`, where values are not known yet, the error is raised when the program runs."""
    status = result.status  # pyright: ignore[reportAttributeAccessIssue]
    if status.is_traced():
        arrays, rest = eqx.partition(result, eqx.is_array)
        return eqx.combine(status.error_if(arrays, ~is_ok(status)), rest)
    if bool(jnp.all(is_ok(status))):
        return result
    message = " ".join(part for part in (describe(status), detail) if part)
    raise DargminError(message + " (The result so far is on this error's `.result`.)", result)


def poison(x: Any, failed: Bool[Array, ""]) -> Any:
    """x, or NaN everywhere if `failed`: never a finite wrong number."""
    arrays, rest = eqx.partition(x, eqx.is_inexact_array)
    nans = jax.tree.map(lambda u: jnp.where(failed, jnp.asarray(jnp.nan, u.dtype), u), arrays)
    return eqx.combine(nans, rest)

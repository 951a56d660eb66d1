"""Proximal operators: prox(v, θ, step) = argmin_x ½‖x - v‖² + step g(x, θ).

Each function is named after its penalty g and returns the operator, a callable `equinox.Module`
for `dargmin.Composite(f, prox)`. v is an array or a pytree of floating-point arrays.

Every parameter (a weight, a bound, a total) is either

- a constant: a number, an array that broadcasts against x, or, where x is a pytree, a pytree of
  these that is a prefix of x. Its arrays are leaves of the operator: they can be mapped over and
  differentiated. Constants are checked at once, and a bad one raises ValueError;
- or a function of θ that returns one, such as ``lambda theta: jnp.exp(theta["l1"])``. What it
  returns is known only at run time: a value that is not allowed makes the result NaN, which every
  solver reports, and never a finite wrong number.

All operators are twice differentiable in v and in their parameters away from their kinks. On a
kink (a coordinate exactly on its threshold) they give the derivative of one side, without NaN.

References
----------
Parikh, Boyd (2014), Proximal Algorithms, Foundations and Trends in Optimization 1(3).
"""

from dargmin.prox.penalties import box, elastic_net, group_lasso, l1, nonnegative, simplex

__all__ = ["box", "elastic_net", "group_lasso", "l1", "nonnegative", "simplex"]

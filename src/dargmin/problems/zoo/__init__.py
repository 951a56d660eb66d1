"""Problems whose exact solution x*(θ) and Jacobian ∂x*(θ) are known by other means.

Each function builds an `Instance` from data: the problem, a starting point, and an oracle that
shares no code with the solvers: it works in NumPy with hand-derived formulas, in extended
precision, so that it stays accurate where float64 has lost many digits. All hyperparameters but
those of `quadratic` are logarithms, so that every θ is allowed.

>>> instance = quadratic([1.0, 3.0], linear=[2.0, 3.0], dense=False)
>>> instance.solution(1.0).tolist(), instance.jacobian(1.0).tolist()
([1.0, 0.75], [-0.5, -0.1875])
"""

from dargmin.problems.zoo.instance import AbstractOracle, Instance
from dargmin.problems.zoo.linear_models import logistic, ridge
from dargmin.problems.zoo.multinomial import multinomial_logistic
from dargmin.problems.zoo.quadratic import quadratic
from dargmin.problems.zoo.sparse import elastic_net, lasso

__all__ = [
    "AbstractOracle",
    "Instance",
    "elastic_net",
    "lasso",
    "logistic",
    "multinomial_logistic",
    "quadratic",
    "ridge",
]

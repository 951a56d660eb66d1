"""scikit-learn estimators whose penalties, one or a thousand, are learnt by hypergradient."""

from dargmin.estimators.base import PenaltyCertificate
from dargmin.estimators.linear import TunedElasticNet, TunedLogisticRegression, TunedRidge

__all__ = ["PenaltyCertificate", "TunedElasticNet", "TunedLogisticRegression", "TunedRidge"]

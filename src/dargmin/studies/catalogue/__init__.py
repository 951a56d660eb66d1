"""The studies, by name: of arXiv 2209.13271, of arXiv 2602.19733, and beyond both."""

from dargmin.studies.catalogue import (
    beyond_quadratics,
    certificates,
    honesty,
    knobs,
    late_start,
    no_curse,
    other_maps,
    pareto,
    sobolev,
    step_size,
    suboptimality,
    turning_points,
    warm_start,
    worst_case,
)
from dargmin.studies.runner import Study

__all__ = ["STUDIES"]

_MODULES = (
    suboptimality, worst_case, step_size, sobolev, knobs, beyond_quadratics,
    turning_points, late_start, warm_start, other_maps,
    pareto, certificates, no_curse, honesty,
)  # fmt: skip

STUDIES: dict[str, Study] = {module.STUDY.name: module.STUDY for module in _MODULES}

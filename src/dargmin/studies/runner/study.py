"""A study: a claim, the tasks that test it, and what their numbers say."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

__all__ = [
    "HOLDS",
    "LIMITS",
    "MISSED",
    "Figure",
    "Frame",
    "Parameters",
    "Study",
    "Table",
    "Verdict",
]

Parameters = dict[str, Any]
"""What distinguishes one task from another: JSON, and the keyword arguments of `Study.run`."""

Table = dict[str, Any]
"""Columns of equal length; a scalar stands for a column that repeats it."""

Frame = Any
"""A pandas.DataFrame. (pandas' own annotations know less than whoever indexes a table.)"""

Figure = Any
"""An Altair chart. (The workers, which import this, do without Altair.)"""

HOLDS, LIMITS, MISSED = "holds", "holds with limits", "does not hold"


@dataclass(frozen=True)
class Verdict:
    """What the numbers say of the claim.

    Parameters
    ----------
    status : `HOLDS`, `LIMITS` or `MISSED`
    sentence : str
        Why, with the numbers.
    numbers : dict from str to number
        Those that decide."""

    status: str
    sentence: str
    numbers: dict[str, float | int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.status not in (HOLDS, LIMITS, MISSED):
            raise ValueError(
                f"A verdict is '{HOLDS}', '{LIMITS}' or '{MISSED}', but status={self.status!r}."
            )


@dataclass(frozen=True)
class Study:
    """Problems × methods × modes × seeds -> one table, its figure and its verdict.

    Parameters
    ----------
    name, title : str
        For the command line, and for people.
    claim, source : str
        What is tested, in words, and who said so.
    settings : str
        Problems, methods and seeds, in words.
    tasks : callable (quick) -> list of Parameters
        Each takes about 1 to 20 seconds; neighbours may share compiled programs.
    run : callable (**parameters) -> Table
        One task, in float64: a function of a module, found by its name.
    verdict : callable (DataFrame) -> Verdict
    figure : callable (DataFrame) -> chart
    description : str
        What the figure shows, for those who cannot see it."""

    name: str
    title: str
    claim: str
    source: str
    settings: str
    tasks: Callable[[bool], list[Parameters]]
    run: Callable[..., Table]
    verdict: Callable[[Frame], Verdict]
    figure: Callable[[Frame], Figure]
    description: str

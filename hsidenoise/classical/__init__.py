"""Methods without weights, under the same signature as networks."""

from typing import TYPE_CHECKING

from hsidenoise.system import offer

if TYPE_CHECKING:
    from hsidenoise.classical.methods import BASELINES, run_baseline

__all__ = ["BASELINES", "run_baseline"]

offer(
    __name__,
    {
        "BASELINES": "methods",
        "run_baseline": "methods",
    },
)

"""The synthetic noise of the literature."""

from typing import TYPE_CHECKING

from hsidenoise.system import offer

if TYPE_CHECKING:
    from hsidenoise.noise.cases import NOISE_CASES, corrupt

__all__ = ["NOISE_CASES", "corrupt"]

offer(
    __name__,
    {
        "NOISE_CASES": "cases",
        "corrupt": "cases",
    },
)

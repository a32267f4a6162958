"""What a cube says about itself, without weights."""

from typing import TYPE_CHECKING

from hsidenoise.system import offer

if TYPE_CHECKING:
    from hsidenoise.signal.noise_level import noise_level
    from hsidenoise.signal.pilot_filter import pilot_filter
    from hsidenoise.signal.planes.estimate import denoise_by_planes
    from hsidenoise.signal.scaling import fit_scaling
    from hsidenoise.signal.spectral_wiener import spectral_wiener

__all__ = ["denoise_by_planes", "fit_scaling", "noise_level", "pilot_filter", "spectral_wiener"]

offer(
    __name__,
    {
        "denoise_by_planes": "planes.estimate",
        "fit_scaling": "scaling",
        "noise_level": "noise_level",
        "pilot_filter": "pilot_filter",
        "spectral_wiener": "spectral_wiener",
    },
)

"""How good a denoised cube is."""

from typing import TYPE_CHECKING

from hsidenoise.system import offer

if TYPE_CHECKING:
    from hsidenoise.metrics.functional import ergas, psnr, sam, ssim
    from hsidenoise.metrics.protocols import PROTOCOLS

__all__ = ["PROTOCOLS", "ergas", "psnr", "sam", "ssim"]

offer(
    __name__,
    {
        "PROTOCOLS": "protocols",
        "ergas": "functional",
        "psnr": "functional",
        "sam": "functional",
        "ssim": "functional",
    },
)

"""The six ways in which the literature computes the metrics: each protocol one cited row of one table.

The same estimate scores differently under each of them, so that a number without its protocol says little.
:mod:`hsidenoise.metrics.functional` computes them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Window = Literal["uniform", "gaussian", "band"]
Normalisation = Literal["sample", "population", "mixed"]


@dataclass(frozen=True)
class Scores:
    """Scores of one denoised cube.

    Attributes:
        psnr: Peak signal-to-noise ratio in dB, mean over bands; infinite where a band is reproduced exactly.
        ssim: Structural similarity, mean over bands, at most 1.
        sam: Mean spectral angle, in radians (protocol ``sert``: degrees).
        ergas: Relative dimensionless global error, 0 is perfect.
        protocol: Row of :data:`PROTOCOLS` that they follow.
    """

    psnr: float
    ssim: float
    sam: float
    ergas: float
    protocol: str


@dataclass(frozen=True)
class Protocol:
    """One way of computing the metrics; ERGAS differs between them only through ``clipped``.

    Attributes:
        name: Key in :data:`PROTOCOLS`.
        source: Whose numbers it reproduces.
        clipped: Whether the estimate is clipped to [0, data_range] first.
        window: SSIM statistics: 7x7 window, Gaussian window of 1.5 pixels, or of the whole band.
        normalisation: Of the SSIM variances and covariance, see :func:`hsidenoise.metrics.functional.ssim`.
        ssim_range: Factor on the data range inside SSIM.
        sam_unit: Unit in which the angle is reported.
        sam_eps: Constant added to the inner product and to both norms, on the [0, 1] scale.
        rows_as_bands: Whether (height, width, bands) is read as (bands, height, width): PSNR and SSIM are then means
            over image rows, and "spectra" run down the columns.
    """

    name: str
    source: str
    clipped: bool
    window: Window = "uniform"
    normalisation: Normalisation = "sample"
    ssim_range: float = 1.0
    sam_unit: Literal["radians", "degrees"] = "radians"
    sam_eps: float = 0.0
    rows_as_bands: bool = False


# ssim_range 2 is what scikit-image once took for floats when no range was passed: the width of [-1, 1].
_ROWS = (
    Protocol("standard", "this project", clipped=True),
    Protocol(
        "qrnn3d",
        "QRNN3D (Wei et al., IEEE TNNLS 2021, doi:10.1109/TNNLS.2020.2978756) and HSDT (Lai et al., ICCV 2023)",
        clipped=False,
        ssim_range=2.0,
        sam_eps=1e-8,
    ),
    Protocol("hsir", "the HSIR toolbox (github.com/bit-isp-lab/HSIR)", clipped=True, ssim_range=2.0, sam_eps=1e-8),
    Protocol(
        "sert",
        "SERT (Li et al., CVPR 2023, arXiv:2304.00844)",
        clipped=False,
        window="band",
        normalisation="mixed",
        sam_unit="degrees",
    ),
    Protocol(
        "t3sc",
        "T3SC (Bodrito et al., NeurIPS 2021, arXiv:2111.09708)",
        clipped=True,
        window="gaussian",
        normalisation="population",
    ),
    # The golden values, like the released test code, score the unclipped estimate.
    Protocol(
        "mafnet",
        "MAFNet (Pan et al., IEEE JSTARS 2023), whose code HCANet's authors point to",
        clipped=False,
        sam_eps=1e-8,
        rows_as_bands=True,
    ),
)

PROTOCOLS: dict[str, Protocol] = {row.name: row for row in _ROWS}

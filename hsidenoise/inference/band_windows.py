"""Windows of bands, denoised one by one, made one cube again: a Wiener step across all bands of the result.

A cube of more bands than a network takes is denoised in windows of neighbouring bands. What noise is left in one
window the network has not compared with the other windows, so it is nearly independent of theirs. The scene is not:
its spectra lie near a subspace of a few dimensions, whatever the number of bands. So the planes of the denoised cube
that hold hardly more energy than noise would leave there are lowered, as in the first step of any subspace method.

How much noise a network leaves in a plane is not known; a hundredth of what there was is taken for granted. That is far
too little at low noise, where nothing happens then, and about right at sigma 50.

References:
    Bioucas-Dias & Nascimento, "Hyperspectral Subspace Identification", IEEE TGRS 46(8), 2008.
    doi:10.1109/TGRS.2008.918089
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32, Float64, Real

from hsidenoise.signal.noise_level import haar_details, spectral_covariance, unexplained_variance

NOISE_LEFT = 0.01
"""Share of the noise's energy that is taken to be left in every plane.

Chosen with the shipped weights on the centre 96 x 96 pixels of two cubes, PSNR of `pavia_crop` (102 bands) / `MUUFL`
(64 bands) with a share of

* 0: gaussian-5 47.42 / 42.34, gaussian-50 38.89 / 32.05, mixture 39.79 / 33.22
* 0.01: 47.50 / 42.36, 39.69 / 32.16, 40.58 / 33.44
* 0.03: 47.41 / 42.34, 39.45 / 32.01, 40.48 / 33.22
* 0.1: 47.12 / 42.24, 38.48 / 31.69, 40.11 / 33.06
"""

PIXELS_PER_BAND = 4
"""Fewer pixels say too little about a covariance; the cube is left as it is then."""

_FLOOR = 1e-6  # least noise of a band, in units of the standard deviation of the cube: keeps whitening finite


def join_windows(
    noisy: Real[np.ndarray, "bands height width"], denoised: Float32[np.ndarray, "bands height width"]
) -> Float32[np.ndarray, "bands height width"]:
    """Lower what a cube that was denoised in windows of bands still holds of noise.

    The covariance C of the denoised spectra is whitened by the noise levels of the noisy bands, and a plane of whitened
    energy e keeps ``1 - 0.01 / e`` of itself. A band's noise is the smaller of two estimates, as in
    :mod:`hsidenoise.signal.spectral_wiener`: the energy of its diagonal Haar details, and what a regression on all
    other bands leaves.

    The smaller the part of a scene, the more a covariance says of it, and the more a few pixels that are unlike all
    others count: :func:`hsidenoise.inference.tiles.run_tiles` joins each tile on its own.

    Args:
        noisy: Cube before, at most some 100 x 100 pixels of it.
        denoised: Cube after, in the same unit.

    Returns:
        The joined cube, a new array; with fewer than 4 pixels for each band the denoised one as it is.

    Raises:
        ValueError: If the shapes differ.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> clean = rng.random((40, 1, 1)) * rng.random((1, 32, 30))
        >>> noisy = clean + rng.normal(0, 0.2, clean.shape)
        >>> denoised = (clean + 0.1 * (noisy - clean)).astype(np.float32)  # a hundredth of the energy is left
        >>> joined = join_windows(noisy, denoised)
        >>> bool(np.square(joined - clean).mean() < 0.2 * np.square(denoised - clean).mean())
        True
    """
    if noisy.shape != denoised.shape:
        raise ValueError(f"a noisy cube of shape {noisy.shape} and a denoised one of {denoised.shape} are not the same")
    bands, height, width = noisy.shape
    covariance = spectral_covariance(denoised)
    floor = _FLOOR * float(np.sqrt(covariance.diagonal().mean()))
    if min(height, width) < 2 or height * width < PIXELS_PER_BAND * bands or floor == 0:
        return denoised.copy()
    sigma = np.maximum(np.sqrt(_noise_variance(noisy)), floor)
    energy, planes = np.linalg.eigh(covariance / sigma[:, None] / sigma)
    lowered = np.minimum(NOISE_LEFT / np.maximum(energy, NOISE_LEFT), 1)
    # what is taken away, not what is kept: a cube with nothing to take stays as it is to the last digit
    taken = sigma[:, None] * ((planes * lowered) @ planes.T) / sigma
    spectra = denoised.reshape(bands, -1).astype(np.float64)
    spectra -= spectra.mean(axis=1, keepdims=True)
    joined: np.ndarray = denoised - (taken @ spectra).reshape(denoised.shape).astype(np.float32)
    return joined


def _noise_variance(noisy: np.ndarray) -> Float64[np.ndarray, " bands"]:
    """Energy of the noise of each band."""
    unexplained = unexplained_variance(spectral_covariance(noisy), noisy[0].size, _FLOOR**2)
    details = haar_details(noisy.astype(np.float64), step=2)
    variance: np.ndarray = np.minimum(unexplained, np.square(details).mean(axis=(1, 2)))
    return variance

"""The noise level of few bands, which do not tell each other: from the parts of an image that are flat."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from hsidenoise.signal.noise_level import SAMPLE, level_of_residual, smallest_step

_CLASSES, _CLASS_WINDOW = 3, 7  # of brightness, in the mean of so many pixels each way
_FLAT, _FLAT_WINDOW = (0.25, 0.1, 0.05), 5  # share of the 2x2 blocks that are the flattest, in a window of so many
_ROUGH = 1.5  # energy of their other details, as noise has it: 0.9 to 1.4 of photon noise, 1.4 to 4 of noise in texture
_FEWEST_BLOCKS = 64  # fewer say nothing
_STEPS = 0.8  # of whole values; a level up to that is texture that was rounded: 0.4 to 0.75 of four clean scenes
_OVERLAPPING = 2.25  # blocks that overlap say as much as one


def level_of_flat_parts(
    cube: Float[Tensor, "bands height width"], lost: Bool[Tensor, "bands height width"]
) -> Float[Tensor, " bands"]:
    """Standard deviation of the Gaussian noise of every band, from the diagonal details where the others are small.

    Where noise is weak, texture is what :func:`~hsidenoise.signal.noise_level.noise_level` sees of a scene: 1.1 to 2.4
    for noise of 1 (0-255 scale; single bands of cave/validation, pavia_crop and remote_sensing_clean), 5.0 to 6.2 for
    noise of 5. In the flattest quarter there is less of it: 1.0 to 1.5 and 4.8 to 5.4. In white noise the details of a
    block say nothing of each other, so that the choice takes nothing away. Where the other details show that even that
    quarter is texture, it is the flattest tenth or twentieth; not always, since the noise of photons is least where it
    is dark. Blocks of one value, as where a scale ends, are left out. What rounding to whole steps adds is noise as
    well; a level below one step is taken for that alone.

    Since the noise of photons is stronger where it is bright, this is done for the dark, the middle and the bright
    third of the pixels, and the level is the root mean square: under photon noise (100 counts at the brightest) 1 to
    20 bands of superballs and chart_and_stuffed_toy gain 1.5 to 9 dB by it, pavia_crop stays as it is; Gaussian noise
    of 1 (0-255 scale) loses up to 0.1 dB.

    Args:
        cube: Noisy cube.
        lost: Values that are no measurements; blocks with one are left out.

    Returns:
        One level per band, in the unit of the cube, with two of its standard errors on top: the most that it may be.
        Infinite where too few blocks are left.

    Example:
        >>> texture = (torch.arange(80) % 2).float() * (torch.arange(60) < 40)[:, None]
        >>> noise = 0.1 * torch.randn(1, 60, 80, generator=torch.Generator().manual_seed(0))
        >>> level_of_flat_parts(texture + noise, torch.zeros(1, 60, 80, dtype=torch.bool)).numpy().round(1)
        array([0.1], dtype=float32)
    """
    bright = _around(torch.where(lost, 0.0, cube), _CLASS_WINDOW) / _around((~lost).to(cube), _CLASS_WINDOW)
    sample = bright.flatten(1).nan_to_num()
    sample = sample[:, :: sample.shape[1] // SAMPLE | 1].sort().values
    bounds = sample.T[[part * sample.shape[1] // _CLASSES for part in range(1, _CLASSES)]]
    kind = (bright > bounds[:, :, None, None]).sum(0)
    levels = torch.stack([_level_where(cube, lost | (kind != each), rough=torch.inf) for each in range(_CLASSES)])
    found = levels.isfinite()
    mean = (torch.where(found, levels, 0.0).square().sum(0) / found.sum(0)).sqrt()
    return mean if found.any(0).all() else torch.where(found.any(0), mean, _level_where(cube, lost))


def _level_where(cube: Tensor, lost: Tensor, rough: float = 1.0) -> Tensor:
    """The same for what is not lost, whatever its brightness; so many times it where all of it is texture."""
    around, other, diagonal = [], [], []
    known = torch.where(lost, torch.nan, cube)
    for down, across in ((0, 0), (0, 1), (1, 0), (1, 1)):
        image = known[:, down:, across:]
        height, width = (length // 2 * 2 for length in image.shape[1:])
        if not (height and width):
            continue
        above, below = image[:, 0:height:2, :width], image[:, 1:height:2, :width]
        total, apart = above + below, above - below
        details = (apart[..., ::2] - apart[..., 1::2]) / 2
        others = (total[..., ::2] - total[..., 1::2]).square() + (apart[..., ::2] + apart[..., 1::2]).square()
        left_out = others.isnan() | ((others == 0) & (details == 0))
        texture, share = (_around(each, _FLAT_WINDOW) for each in (others.nan_to_num(), (~others.isnan()).to(others)))
        around.append(torch.where(left_out, torch.inf, texture / share).flatten(1))
        other.append(others.flatten(1) / 8.0)
        diagonal.append(details.flatten(1))
    levels = cube.new_full((len(cube),), torch.inf)
    blocks = zip(*(torch.cat(each, 1) for each in (around, other, diagonal)), strict=True)
    for band, (texture, others, details) in enumerate(blocks):
        order = texture[texture < torch.inf].sort().values
        if len(order) >= _FEWEST_BLOCKS:
            step = smallest_step(cube[band])
            for part in _FLAT:
                flat = texture <= order[int(part * len(order))]
                level = level_of_residual(details[flat][None, None], torch.zeros_like(flat[flat][None, None]))[0]
                if level == 0 or others[flat].mean() < _ROUGH * level.square() or flat.sum() < _FEWEST_BLOCKS:
                    break
            else:
                level = rough * level
            error = (_OVERLAPPING / (2 * float(flat.sum()))) ** 0.5
            rounding = step / 12.0**0.5
            levels[band] = (1.0 + 2.0 * error) * level.clamp_min(rounding) if level > _STEPS * step else rounding
    return levels


def _around(images: Tensor, window: int) -> Tensor:
    """Mean over a window, of what of it lies in the image."""
    return F.avg_pool2d(images[None], window, 1, window // 2, count_include_pad=False)[0]

import numpy as np
import pytest

from hsidenoise.data.measure import scorable
from hsidenoise.signal.mask import find_mask


def test_what_holds_no_truth_is_left_out_of_a_score(real_crop):
    scene = real_crop.astype(np.float64)
    denoised, clean = scene + 0.01, scene.copy()
    denoised[:, :6] = clean[:, :6] = -9999
    clean[4, 20, 20] = np.nan
    clean[:, 30, 30] = -9999
    denoised[3, 40, 40:43] = -9999
    denoised[7, 41, 9] = np.inf
    masks = find_mask(denoised).valid, find_mask(clean).valid
    left = scorable(denoised, clean, *masks)
    assert left.bands.all()
    wanted = np.ones(scene.shape[1:], dtype=bool)
    wanted[:6] = wanted[20, 20] = wanted[30, 30] = wanted[41, 9] = False
    assert np.array_equal(left.pixels, wanted)
    assert left.reasons == ("3 values seem to be no data in the denoised cube only: scored as they are",)
    wanted[40, 40:43] = False
    left = scorable(denoised, clean, *masks, asked=True)
    assert np.array_equal(left.pixels, wanted)
    assert left.reasons == ()
    with pytest.raises(ValueError, match="no pixel holds data in all bands of both cubes"):
        scorable(np.full_like(scene, np.nan), scene)

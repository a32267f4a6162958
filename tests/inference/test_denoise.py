import json
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from hsidenoise.data.io import read_cube, write_arrays
from hsidenoise.inference.denoise import denoise, denoise_file
from hsidenoise.models import create_model
from hsidenoise.models.weights import load_model, save_weights
from hsidenoise.noise.cases import NOISE_CASES, corrupt
from hsidenoise.signal.tiling import plan
from hsidenoise.system.files import sha256

ROOT = Path(__file__).parents[2]


class Identity(nn.Module):
    """The network that changes nothing, and remembers every tile that it saw."""

    def __init__(self, bands: int = 31) -> None:
        super().__init__()
        self.bands = bands
        self.seen: list[tuple[int, ...]] = []
        self.largest = 0.0

    def forward(self, noisy: torch.Tensor) -> torch.Tensor:
        self.seen += [tuple(noisy.shape[1:])] * len(noisy)
        self.largest = max(self.largest, float(noisy.abs().max()))
        assert not self.training
        return noisy


class Local(nn.Module):
    """A small convolutional network whose answers reach two pixels far."""

    def __init__(self, bands: int = 5) -> None:
        super().__init__()
        self.bands = bands
        generator = torch.Generator().manual_seed(0)
        self.first = nn.Parameter(torch.randn(8, bands, 3, 3, generator=generator) * 0.2)
        self.second = nn.Parameter(torch.randn(bands, 8, 3, 3, generator=generator) * 0.2)

    def forward(self, noisy: torch.Tensor) -> torch.Tensor:
        features = F.gelu(F.conv2d(F.pad(noisy, (1, 1, 1, 1), mode="replicate"), self.first))
        return F.conv2d(F.pad(features, (1, 1, 1, 1), mode="replicate"), self.second)


class Limited(Identity):
    """A network on a device that holds only so many pixels, and says so as the real devices do."""

    def __init__(self, pixels: int, error: Exception, bands: int = 4) -> None:
        super().__init__(bands)
        self.pixels = pixels
        self.error = error

    def forward(self, noisy: torch.Tensor) -> torch.Tensor:
        if noisy.shape[-1] * noisy.shape[-2] > self.pixels:
            raise self.error
        return super().forward(noisy)


def cube(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0.5, 0.3, shape).astype(np.float32)


@given(
    shape=st.tuples(st.integers(1, 70), st.integers(1, 60), st.integers(4, 50)),
    bands=st.integers(1, 40),
    tile=st.integers(8, 64),
    share=st.floats(0, 0.6),
    unit=st.sampled_from([0.01, 1.0, 5000.0]),
)
@settings(max_examples=40, deadline=None)
def test_identity_gives_back_any_cube(shape, bands, tile, share, unit):
    noisy = cube(*shape) * unit
    before = noisy.copy()
    denoised = denoise(noisy, Identity(bands), tile=tile, overlap=int(share * tile))
    assert denoised.shape == shape
    assert denoised.dtype == np.float32
    assert np.abs(denoised - noisy).max() <= 1e-6 * np.abs(noisy).max()
    assert np.array_equal(noisy, before)


@pytest.mark.parametrize("bands", [1, 2, 17, 31, 45, 200])
def test_network_always_sees_its_own_number_of_bands(bands):
    network = Identity(31)
    noisy = cube(bands, 12, 9)
    assert denoise(noisy, network) == pytest.approx(noisy, abs=2e-6)
    assert {shape[0] for shape in network.seen} == {31}
    # 21 fresh bands for each window after the first
    assert len(network.seen) == 1 + max(0, int(np.ceil((bands - 31) / 21)))


def test_fewer_bands_arrive_mirrored_and_come_back_cropped():
    class Shift(nn.Module):
        bands = 6

        def forward(self, noisy: torch.Tensor) -> torch.Tensor:
            return noisy.roll(-1, dims=1)

    noisy = cube(4, 5, 7)
    # band 3 is followed by the mirror image of band 2
    assert denoise(noisy, Shift(), normalize="none") == pytest.approx(noisy[[1, 2, 3, 2]])


@pytest.mark.parametrize(("tile", "overlap"), [(24, 8), (32, 5), (28, 12)])
def test_tiles_of_a_local_network_leave_no_seam(tile, overlap):
    network = Local()
    noisy = cube(5, 50, 70)
    whole = denoise(noisy, network, tile=70)
    tiled = denoise(noisy, network, tile=tile, overlap=overlap)
    # a tile's own border lacks what lies beyond: with weights that are small there, little of it remains
    assert np.abs(tiled - whole).max() < 0.1 * np.ptp(whole)
    interior = np.ones((50, 70), dtype=bool)
    for axis, length in enumerate((50, 70)):
        for start in plan(length, tile, overlap):
            for edge in {start, start + tile} - {0, length}:
                interior.swapaxes(0, axis)[max(0, edge - 2) : edge + 2] = False
    assert interior.sum() > 500
    assert np.abs(tiled - whole)[:, interior].max() < 1e-5


def test_without_overlap_there_is_a_seam_that_overlap_mends():
    network = Local()
    noisy = cube(5, 48, 64)
    whole = denoise(noisy, network, tile=64)
    hard = np.abs(denoise(noisy, network, tile=16, overlap=0) - whole).max()
    soft = np.abs(denoise(noisy, network, tile=16, overlap=8) - whole).max()
    assert hard > 3 * soft


def test_default_tiles_take_small_cubes_whole_and_balance_large_ones():
    for size, tiles in [((100, 125), {(100, 125)}), ((145, 512), {(96, 96)}), ((40, 1392), {(40, 96)})]:
        network = Identity(3)
        denoise(cube(3, *size), network)
        assert {shape[1:] for shape in network.seen} == tiles


def test_asked_for_tiles_are_kept():
    network = Identity(3)
    denoise(cube(3, 100, 80), network, tile=48, overlap=16)
    assert {shape[1:] for shape in network.seen} == {(48, 48)}
    assert len(network.seen) == 3 * 2


def test_values_reach_the_network_on_unit_range_and_come_back_in_their_unit():
    noisy = (1000 + 8000 * np.random.default_rng(0).random((6, 20, 30))).astype(np.uint16)
    network = Identity(6)
    assert denoise(noisy, network) == pytest.approx(noisy.astype(np.float32), rel=1e-6)
    assert network.largest < 1.1
    network = Identity(6)
    denoise(noisy, network, normalize="none")
    assert network.largest > 8000


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "int64", "float16", "float64", ">f4", ">u2"])
def test_every_real_dtype(dtype):
    noisy = (np.random.default_rng(0).random((4, 9, 11)) * 200).astype(dtype)
    denoised = denoise(noisy, Identity(5))
    assert denoised.dtype == (np.float64 if dtype in ("int32", "int64", "float64") else np.float32)
    assert denoised == pytest.approx(noisy.astype(np.float32), abs=2e-4)


@pytest.mark.parametrize(
    ("offsets", "named"), [(1e4 * np.arange(9), "bands 0-3, 5-8: "), (1e7 * (np.arange(9) == 4), "band 4: ")]
)
def test_bands_of_far_levels_are_denoised_as_without_them_and_named(offsets, named):
    rows, columns = np.mgrid[:24, :28]
    clean = np.stack([np.sin(rows / 7) * np.cos(columns / 9) * (0.5 + 0.05 * band) for band in range(9)])
    noisy = clean + np.random.default_rng(0).normal(0, 0.05, clean.shape)
    usual = np.sqrt(np.mean((denoise(noisy, "hcanet-bra") - clean) ** 2, axis=(1, 2)))
    with pytest.warns(RuntimeWarning, match=f"^{named}.*without that offset"):
        far = denoise(noisy + offsets[:, None, None], "hcanet-bra") - offsets[:, None, None]
    assert np.sqrt(np.mean((far - clean) ** 2, axis=(1, 2))).max() < 1.5 * usual.max() < 0.05


def test_integers_that_no_float_tells_apart_are_refused():
    with pytest.raises(ValueError, match="subtract an offset"):
        denoise(np.arange(5 * 6 * 7).reshape(5, 6, 7) + 2**60, Identity(5))


@pytest.mark.parametrize(
    ("dtype", "offset"), [("float64", 1e6), ("float64", -1e9), ("int32", 2**30), ("uint32", 2**31)]
)
def test_a_large_offset_costs_no_digits_in_arrays_and_files(dtype, offset, tmp_path):
    small = np.random.default_rng(0).random((4, 19, 31)) * (1 if dtype == "float64" else 1000)
    noisy = (small + offset).astype(dtype)
    tolerance = 1e-4 if dtype == "float64" else 0.01
    assert np.abs(denoise(noisy, Identity(4)) - noisy.astype(np.float64)).max() < tolerance
    write_arrays(tmp_path / "a.mat", {"cube": noisy.transpose(1, 2, 0)})
    denoise_file(tmp_path / "a.mat", tmp_path / "b.mat", Identity(4))
    written = scipy.io.loadmat(tmp_path / "b.mat")["cube"].transpose(2, 0, 1)
    assert written.dtype == dtype
    assert np.abs(written.astype(np.float64) - noisy).max() < tolerance


@given(
    exponent=st.floats(-9, 9),
    shift=st.floats(-1e3, 1e3),
    seed=st.integers(0, 99),
    case=st.sampled_from(["gaussian-30", "non-iid", "mixture", "noise alone"]),
)
@settings(max_examples=40, deadline=None)
def test_units_do_not_matter(structured_cube, exponent, shift, seed, case):
    noisy = corrupt(structured_cube[::3], case if case in NOISE_CASES else "blind", seed=seed).noisy.astype(np.float64)
    if case not in NOISE_CASES:
        noisy[2] = np.random.default_rng(seed).normal(0, 20, noisy[2].shape)
    scale = 10**exponent
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "noise alone: band 2")
        plain = denoise(noisy, Local(5), tile=32)
        again = denoise(scale * (noisy + shift), Local(5), tile=32) / scale - shift
    assert np.abs(again - plain).max() < 1e-4 * np.ptp(noisy)


@pytest.mark.parametrize(("scale", "shift"), [(1e-9, 0.0), (1e9, -7e9), (2.1, 955.0)])
@pytest.mark.parametrize("case", ["gaussian-50", "mixture"])
def test_units_do_not_matter_to_the_shipped_weights(real_crop, case, scale, shift):
    noisy = corrupt(real_crop, case, seed=0).noisy.astype(np.float64)
    plain = denoise(noisy, "hcanet-bra")
    again = (denoise(scale * noisy + shift, "hcanet-bra") - shift) / scale
    assert np.abs(again - plain).max() < 1e-4 * np.ptp(noisy)


@pytest.mark.parametrize("kind", ["nothing in common with the other bands", "noise alone, or nearly"])
def test_bands_that_share_nothing_harm_no_others(real_crop, rng, kind):
    noisy = corrupt(np.concatenate([real_crop, real_crop[::-1]])[:, :40, :45], "gaussian-5", seed=0).noisy
    bad = [*range(10, 18), 51]
    others = np.setdiff1d(np.arange(62), bad)
    rows = 1 if kind.startswith("nothing") else 40  # stripes, or noise that is no stronger than the scene
    noisy[bad] = 0.3 + rng.normal(0, 0.2, (len(bad), rows, 45))
    alone = denoise(noisy[others], "hcanet-bra")
    with pytest.warns(RuntimeWarning, match=f"{kind}: bands 10-17, 51; left out and kept as it is"):
        kept = denoise(noisy, "hcanet-bra", bad_bands="keep")
    assert np.array_equal(kept[bad], noisy[bad])
    with pytest.warns(RuntimeWarning, match=f"{kind}: bands 10-17, 51; (denoised alone|what comes out)"):
        together = denoise(noisy, "hcanet-bra")
    for denoised in (kept, together):
        assert np.abs(denoised[others] - alone).mean() < 0.003


def test_bands_of_noise_are_named_once(real_crop, rng):
    noisy = np.concatenate([real_crop, real_crop[::-1]])[:, :40, :45]
    noisy[4:7] = rng.normal(0, 50, noisy[4:7].shape)
    with pytest.warns(RuntimeWarning) as said:
        denoise(noisy, Identity())
    assert [str(each.message).partition(";")[0] for each in said] == ["noise alone: bands 4-6"]


def test_bands_of_noise_alone_harm_no_others(real_crop, rng):
    noisy = corrupt(real_crop, "gaussian-5", seed=0).noisy
    lost = [6, 7, 8, 20]
    others = np.setdiff1d(np.arange(31), lost)
    errors = []
    for sigma in (0, 3, 50):
        noisy[lost] += rng.normal(0, sigma, noisy[lost].shape).astype(np.float32)
        if sigma:
            with pytest.warns(RuntimeWarning, match="noise alone: bands 6-8, 20; left out and kept as it is"):
                kept = denoise(noisy, "hcanet-bra", bad_bands="keep")
            with pytest.warns(
                RuntimeWarning, match="noise alone: bands 6-8, 20; replaced by what the other bands expl"
            ):
                denoised = denoise(noisy, "hcanet-bra")
            assert np.array_equal(kept[lost], noisy[lost])
            assert np.array_equal(kept[others], denoised[others])
            assert np.abs(denoised[lost] - noisy[lost].mean(axis=(1, 2), keepdims=True)).max() < 0.5 * sigma
        else:
            denoised = denoise(noisy, "hcanet-bra")
        errors.append(np.sqrt(np.square((denoised - real_crop)[others]).mean()))
    assert max(errors) < 1.15 * errors[0]


@pytest.mark.parametrize("value", [1e6, -9999.0, 1e20, 3e38])
def test_what_is_no_measurement_is_named_kept_and_harms_nothing(real_crop, value):
    noisy = corrupt(real_crop, "gaussian-30", seed=0).noisy
    plain = denoise(noisy, "hcanet-bra")
    hot = noisy.copy()
    hot[:, 20, 30] = value
    with pytest.warns(
        RuntimeWarning, match=r"in 1 pixel of bands 0-30: no measurement, it seems; left out and kept as it is"
    ):
        denoised = denoise(hot, "hcanet-bra")
    assert (denoised[:, 20, 30] == hot[:, 20, 30]).all()
    others = np.ones(noisy.shape[1:], dtype=bool)
    others[20, 30] = False
    assert np.sqrt(np.square((denoised - plain)[:, others]).mean()) < 0.005


@pytest.mark.parametrize("normalize", ["auto", "none", "minmax"])
@pytest.mark.parametrize("values", [[1e6], [1e6, -1e5, 3e4, 1e3], [1e9, 1e7]])
def test_large_values_are_no_crash(real_crop, values, normalize):
    noisy = corrupt(real_crop, "gaussian-30", seed=0).noisy
    for number, value in enumerate(values):
        noisy[:, 5 + 9 * number, 30] = value
    with pytest.warns(RuntimeWarning, match="no measurement, it seems"):
        assert np.isfinite(denoise(noisy, "hcanet-bra", normalize=normalize)).all()


def test_odd_memory_layouts_and_read_only_arrays():
    noisy = cube(6, 20, 30)
    for view in (noisy[::-1, :, ::2], np.asfortranarray(noisy), noisy.transpose(0, 2, 1)):
        assert denoise(view, Identity(4), tile=16) == pytest.approx(view, abs=2e-6)
    noisy.setflags(write=False)
    assert denoise(noisy, Identity(4), tile=16) == pytest.approx(noisy, abs=2e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.uint8])
def test_tensors(dtype):
    noisy = (torch.rand(4, 9, 11, generator=torch.Generator().manual_seed(0)) * 200).to(dtype)
    before = noisy.clone()
    denoised = denoise(noisy, Identity(4))
    assert isinstance(denoised, torch.Tensor)
    assert denoised.numpy() == pytest.approx(noisy.float().numpy(), abs=2e-4)
    assert torch.equal(noisy, before)


def test_tensor_with_gradient():
    noisy = torch.from_numpy(cube(4, 9, 11)).requires_grad_()
    assert denoise(noisy, Identity(4)).numpy() == pytest.approx(noisy.detach().numpy(), abs=1e-6)


def test_network_is_left_as_it_was():
    network = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Dropout(0.5))
    network.bands = 3
    network.train()
    network[1].eval()  # frozen statistics: restoring one mode for all modules would thaw them
    state = {name: value.clone() for name, value in network.state_dict().items()}
    first = denoise(cube(3, 8, 9), network, device="cpu")
    assert [module.training for module in network.modules()] == [True, True, False, True]
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in network.parameters())
    assert np.array_equal(first, denoise(cube(3, 8, 9), network))


def test_mode_is_restored_after_a_failure():
    network = Limited(0, ArithmeticError("broken"))
    network.train()
    with pytest.raises(ArithmeticError, match="broken"):
        denoise(cube(4, 8, 9), network)
    assert network.training


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes"),
        RuntimeError("could not create a primitive"),
        MemoryError(),
    ],
)
def test_tile_that_does_not_fit_is_retried_smaller(error):
    noisy = cube(4, 100, 130)
    network = Limited(40 * 40, error)
    with pytest.warns(RuntimeWarning, match="starting over with tiles of") as caught:
        denoised = denoise(noisy, network)
    assert [str(entry.message) for entry in caught] == [
        "tiles of 100x130 pixels do not fit the memory of cpu; starting over with tiles of 65x65, overlap 12",
        "tiles of 65x65 pixels do not fit the memory of cpu; starting over with tiles of 32x32, overlap 5",
    ]
    assert denoised == pytest.approx(noisy, abs=2e-6)
    assert {shape[1:] for shape in network.seen} == {(32, 32)}


def test_the_warning_points_to_the_caller():
    """In a process of its own: under pytest the annotation checks stand between caller and function."""
    script = """
import hsidenoise, numpy, torch
class Limited(torch.nn.Identity):
    bands = 3
    def forward(self, noisy):
        if noisy.shape[-1] > 40:
            raise MemoryError
        return noisy
hsidenoise.denoise(numpy.random.default_rng(0).random((3, 50, 60)), Limited())
"""
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=True)
    assert "<string>:9: RuntimeWarning: tiles of 50x60 pixels do not fit" in done.stderr


def test_real_allocation_that_fails_is_retried():
    class Greedy(Identity):
        def forward(self, noisy: torch.Tensor) -> torch.Tensor:
            if noisy.shape[-1] > 40:
                torch.empty(2**60)  # more than any address space holds: the allocator's own error
            return super().forward(noisy)

    noisy = cube(3, 50, 60)
    with pytest.warns(RuntimeWarning, match="tiles of 50x60 pixels do not fit the memory of cpu.*32x32, overlap 8"):
        denoised = denoise(noisy, Greedy(3), tile=64)
    assert denoised == pytest.approx(noisy, abs=2e-6)


def test_memory_that_never_suffices_is_an_error_of_one_line():
    noisy = cube(4, 100, 130)
    with (
        pytest.warns(RuntimeWarning, match="starting over"),
        pytest.raises(ValueError, match="not enough memory on cpu even for a tile of 32x32") as caught,
    ):
        denoise(noisy, Limited(0, torch.OutOfMemoryError("out of memory")))
    assert "\n" not in str(caught.value)


def test_a_pilot_filter_without_memory_names_the_way_out():
    """It takes the whole cube: smaller tiles would not help it."""
    script = """
import hsidenoise, numpy, resource, torch
class Same(torch.nn.Identity):
    bands = 40
noisy = numpy.random.default_rng(0).random((40, 500, 500), dtype=numpy.float32)
hsidenoise.denoise(noisy[:, :64, :64], Same(), pilot_rounds=1)
# (OpenBLAS ends the program if it finds no memory to begin)
with open("/proc/self/statm") as file:
    used = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 7 * noisy.nbytes // 2,) * 2)
hsidenoise.denoise(noisy, Same(), tile=100, batch=1)
try:
    hsidenoise.denoise(noisy, Same(), tile=100, batch=1, pilot_rounds=1)
except ValueError as error:
    print(error)
"""
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("not enough memory on cpu for the pilot filter")
    assert "--pilot-rounds 0" in done.stdout


def test_other_runtime_errors_are_not_swallowed():
    with pytest.raises(RuntimeError, match="size mismatch"):
        denoise(cube(4, 100, 130), Limited(0, RuntimeError("size mismatch")))


def test_progress_goes_to_standard_error_when_asked_for(capsys):
    denoise(cube(3, 40, 50), Identity(3), tile=32)
    out, err = capsys.readouterr()
    assert (out, err) == ("", "")
    denoise(cube(3, 40, 50), Identity(3), tile=32, progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "denoise" in err
    assert "4/4" in err


@pytest.mark.parametrize("batch", [1, 2, 5, 100])
def test_the_result_does_not_depend_on_the_batch(batch):
    torch.manual_seed(0)
    network = create_model("hcanet", bands=8, dim=8, num_blocks=(1, 1, 1), heads=(1, 2, 4))
    noisy = cube(13, 50, 70)
    wanted = denoise(noisy, network, tile=32, overlap=8, batch=3)
    assert denoise(noisy, network, tile=32, overlap=8, batch=batch) == pytest.approx(wanted, abs=1e-5)


def test_tiles_go_through_in_batches_of_nearly_one_size():
    sizes = []

    class Probe(Identity):
        def forward(self, noisy: torch.Tensor) -> torch.Tensor:
            sizes.append(len(noisy))
            return super().forward(noisy)

    for batch, wanted in ((1, [1] * 6), (4, [3, 3]), (5, [3, 3]), (6, [6]), (100, [6])):
        sizes.clear()
        denoise(cube(3, 100, 80), Probe(3), tile=48, overlap=16, batch=batch)
        assert sizes == wanted


def test_not_a_number_names_its_tile_in_any_batch():
    class Broken(Identity):
        def forward(self, noisy: torch.Tensor) -> torch.Tensor:
            return torch.where(noisy.amax(dim=(1, 2, 3), keepdim=True) > 5, torch.nan, noisy)

    noisy = cube(3, 48, 48)
    noisy[1, 40, 20:22] = 5.5, 3.0
    for batch in (1, 4, 9):
        with pytest.raises(ValueError, match="at bands 0-2, rows 32-47, columns 16-31; "):
            denoise(noisy, Broken(3), tile=16, overlap=0, batch=batch, normalize="none")


def test_a_batch_that_does_not_fit_is_halved_before_the_tile_is():
    class Narrow(Identity):
        def forward(self, noisy: torch.Tensor) -> torch.Tensor:
            if len(noisy) > 2:
                raise torch.OutOfMemoryError("out of memory")
            return super().forward(noisy)

    network, noisy = Narrow(3), cube(3, 100, 80)
    assert denoise(noisy, network, tile=48, overlap=16, batch=6) == pytest.approx(noisy, abs=2e-6)
    assert network.seen == [(3, 48, 48)] * 6


MEMORY = """
import resource, sys, warnings
import hsidenoise, numpy, torch
torch.set_num_threads(1)
class Mean(torch.nn.Conv2d):
    bands = 3
noisy = numpy.random.default_rng(0).random((3, 120, 100))
network = Mean(3, 64, 3, padding=1)
network.forward = lambda noisy: sizes.append(tuple(noisy.shape)) or noisy
sizes = []
hsidenoise.denoise(noisy, network)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 100 * 2**20,) * 2)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    hsidenoise.denoise(noisy, network)
    hsidenoise.denoise(noisy, network, tile=110)
print({size[2:] for size in sizes}, *(entry.message for entry in caught), sep="; ")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_little_memory_makes_the_chosen_tile_smaller_and_leaves_one_that_is_asked_for():
    done = subprocess.run([sys.executable, "-c", MEMORY], cwd=ROOT, capture_output=True, text=True, check=True)
    sizes, *notes = done.stdout.strip().split("; ", 1)
    assert set(re.findall(r"\d+, \d+", sizes)) == {"120, 100", "60, 60", "110, 100"}
    assert notes == ["little memory is left on cpu; taking tiles of 60x60 pixels, overlap 12"]


COMPILE = """
import warnings
import numpy, torch
from hsidenoise import create_model, denoise
torch.set_num_threads(1)
torch.manual_seed(0)
network = create_model("hcanet", bands=5, dim=8, num_blocks=(1, 0, 0), num_refinement_blocks=0, heads=(1, 2, 2))
noisy = numpy.random.default_rng(0).random((5, 70, 75))
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for tile in (40, 39):
        wanted = denoise(noisy, network, tile=tile, overlap=8, batch=2)
        assert abs(denoise(noisy, network, tile=tile, overlap=8, batch=2, compile=True) - wanted).max() < 1e-4
print(*(entry.message for entry in caught if entry.category is RuntimeWarning), sep="\\n")
print("graphs", torch._dynamo.utils.counters["stats"]["unique_graphs"])
"""


@pytest.mark.slow
def test_a_compiled_network_gives_the_same_at_any_size():
    done = subprocess.run([sys.executable, "-c", COMPILE], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    warned, graphs = done.stdout.rsplit("graphs", 1)
    assert warned.strip() == ""
    assert int(graphs) == 1  # not one for each size, and the second call of denoise finds the first one's


@pytest.mark.slow
def test_without_a_compiler_one_warning_and_the_network_as_it_is(tmp_path):
    environment = {**os.environ, "CXX": "no-such-compiler", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    layers = "torch.nn.Sequential(torch.nn.Conv2d(5, 5, 3, padding=1), torch.nn.GELU())\nnetwork.bands = 5"
    script = re.sub(r"create_model\(.*", layers, COMPILE).replace("(40, 39)", "(40,)")
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    warned, _ = done.stdout.rsplit("graphs", 1)
    assert warned.count("compiling Sequential failed, it runs as it is") == 1
    assert warned.strip().count("\n") == 0


def test_bfloat16_runs_under_autocast():
    seen = []

    class Probe(Local):
        def forward(self, noisy: torch.Tensor) -> torch.Tensor:
            answer = super().forward(noisy)
            seen.append(answer.dtype)
            return answer

    noisy = cube(5, 20, 30)
    exact = denoise(noisy, Probe())
    coarse = denoise(noisy, Probe(), precision="bfloat16")
    assert seen == [torch.float32, torch.bfloat16]
    assert coarse.dtype == np.float32
    assert 0 < np.abs(coarse - exact).max() < 0.05 * np.ptp(exact)


def test_networks_see_channels_last_tensors_without_gradient():
    class Probe(Identity):
        def forward(self, noisy: torch.Tensor) -> torch.Tensor:
            assert noisy.is_contiguous(memory_format=torch.channels_last)
            assert torch.is_inference_mode_enabled()
            return super().forward(noisy)

    denoise(cube(5, 20, 30), Probe(5))


@pytest.mark.parametrize(
    ("noisy", "options", "message"),
    [
        (np.zeros((3, 4)), {}, r"three axes \(bands, height, width\), this array has shape \(3, 4\)"),
        (np.zeros((1, 3, 4, 5)), {}, "three axes"),
        (np.zeros((3, 0, 5)), {}, "empty"),
        (np.ones((3, 4, 5)), {}, "every value of the cube is 1"),
        (np.ones((3, 4, 5), dtype=complex), {}, "this array holds complex128"),
        (np.ones((3, 4, 5), dtype=bool), {}, "this array holds bool"),
        (np.array([[["a"]]]), {}, "this array holds <U1"),
        (cube(3, 4, 5), {"tile": 0}, "tile is 0; it is a whole number from 1"),
        (cube(3, 4, 5), {"tile": 16, "overlap": 16}, "an overlap of 16 does not go with tiles of 16"),
        (cube(3, 4, 5), {"batch": 0}, "batch is 0; it is a whole number from 1"),
        (cube(3, 4, 5), {"overlap": -1}, "overlap is -1; it is a whole number from 0"),
        (cube(3, 4, 5), {"normalize": "best"}, "unknown normalisation 'best'"),
        (cube(3, 4, 5), {"precision": "float8"}, "unknown precision 'float8'"),
        (cube(3, 4, 5), {"device": "tpu9"}, "unknown device 'tpu9'"),
        (cube(3, 4, 5), {"device": "cuda:99"}, "no device 'cuda:99'"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_bad_input_is_refused_in_one_line(noisy, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        denoise(noisy, Identity(3), **options)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("unchecked")
def test_bad_networks_are_refused():
    noisy = cube(3, 8, 9)
    with pytest.raises(ValueError, match="Conv2d has no attribute `bands`"):
        denoise(noisy, nn.Conv2d(3, 3, 1))
    with pytest.raises(ValueError, match="not int"):
        denoise(noisy, 7)
    half = nn.MaxPool2d(2)
    half.bands = 3
    with pytest.raises(ValueError, match=r"answered \(1, 3, 8, 9\) with \(1, 3, 4, 4\)"):
        denoise(noisy, half)

    class Broken(Identity):
        def forward(self, noisy: torch.Tensor) -> torch.Tensor:
            return noisy / 0

    with pytest.raises(ValueError, match="NaN or infinite values at bands 0-2, rows 0-7, columns 0-8"):
        denoise(noisy, Broken(3))


@pytest.fixture
def noisy_file(tmp_path):
    """A file as users have them: counts, (height, width, bands), with other variables beside the cube."""
    counts = 900 + 60 * np.random.default_rng(0).random((24, 33, 12)) ** 2 * np.arange(10, 22)
    path = tmp_path / "noisy.mat"
    scipy.io.savemat(path, {"scene": counts.astype(np.uint16), "wavelength": np.linspace(400, 700, 12), "note": "x"})
    return path


def test_file_keeps_its_layout(noisy_file, tmp_path):
    target = tmp_path / "clean.mat"
    done = denoise_file(noisy_file, target, Local(5), tile=16, overlap=4)
    before, after = scipy.io.loadmat(noisy_file), scipy.io.loadmat(target)
    assert {name for name in after if name[0] != "_"} == {"scene", "wavelength", "note"}
    assert after["scene"].dtype == np.uint16
    assert np.array_equal(after["wavelength"], before["wavelength"])
    values = before["scene"].transpose(2, 0, 1)
    wanted = denoise(values, Local(5), tile=16, overlap=4)
    assert np.array_equal(after["scene"].transpose(2, 0, 1), np.clip(np.rint(wanted), 0, 65535))
    assert np.array_equal(done.denoised.values, wanted)
    assert np.array_equal(done.cube.values, values)
    assert (done.tile, done.overlap, done.windows) == ((16, 16), 4, 3)
    assert (done.device, done.model, done.warnings) == ("cpu", "Local", ())
    assert done.scaling.mode == "auto"
    assert done.seconds > 0


def test_how_it_was_done_is_written_into_the_file_or_beside_it(noisy_file, tmp_path):
    weights = tmp_path / "own.safetensors"
    network = create_model("hcanet-bra", planes=3, dim=8, num_blocks=(0, 0, 1), num_refinement_blocks=0)
    save_weights(weights, network, name="hcanet-bra")
    level = np.linspace(3, 4, 12)
    beside = denoise_file(noisy_file, tmp_path / "a.mat", weights, noise=level, device="cpu")
    assert beside.recorded == tmp_path / "a.mat.json"
    record = json.loads(beside.recorded.read_text())
    assert record == beside.record
    assert record["weights"] == {"name": str(weights), "sha256": sha256(weights)}
    assert (record["options"]["noise"], record["torch"]) == ("array of 12", torch.__version__)
    assert len(record["residual"]["noise_before"]["per_band"]) == 12

    inside = denoise_file(noisy_file, tmp_path / "b.npz", weights, noise=level, device="cpu")
    assert inside.recorded == tmp_path / "b.npz"
    with np.load(inside.recorded) as file:
        short = json.loads(str(file["hsidenoise"]))
        assert np.array_equal(file["scene"], scipy.io.loadmat(tmp_path / "a.mat")["scene"])
    assert short["residual"] == {
        "noise_before": {"median": record["residual"]["noise_before"]["median"]},
        "noise_after": {"median": record["residual"]["noise_after"]["median"]},
        **{key: record["residual"][key] for key in ("whiteness_most", "eaten_most", "structured", "contrast")},
    }
    assert short | {"residual": 0} == inside.record | {"residual": 0}

    again = denoise_file(inside.recorded, tmp_path / "c.npz", Local(5))
    found = json.loads(read_cube(again.recorded).metadata.record)
    assert found["weights"] == {"name": "Local", "sha256": None}
    assert found["input"] == str(inside.recorded)
    assert sorted(path.name for path in tmp_path.glob("*.json")) == ["a.mat.json"]


def test_what_was_replaced_is_counted_once_in_all_tiles_and_not_where_there_is_no_data(tmp_path):
    network = create_model("hcanet-bra", planes=3, dim=8, num_blocks=(0, 0, 1), num_refinement_blocks=0)
    clean = np.linspace(1, 2, 12)[:, None, None] * np.indices((44, 70)).sum(0) / 114
    noisy = np.float32(clean + np.random.default_rng(0).normal(0, 0.02, clean.shape))
    noisy[3, :, 21] = noisy[7, 30] = 0.0
    noisy[:, :4] = np.nan
    for cube, options, count, bands in (
        (noisy, {"tile": 24, "ensemble": 2}, 40 + 70, [3, 7]),
        (noisy[:, 30:31], {}, 1, [3]),  # one row: band 7 holds no data there
    ):
        np.save(tmp_path / "a.npy", cube)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            done = denoise_file(tmp_path / "a.npy", tmp_path / "b.npy", network, axes="bhw", **options)
        assert (done.record["replaced"]["values"], done.record["replaced"]["bands"]) == (count, bands)


def test_file_through_the_identity_comes_back_the_same(noisy_file, tmp_path):
    target = tmp_path / "clean.mat"
    done = denoise_file(noisy_file, target, Identity(31), tile=16)
    assert np.array_equal(scipy.io.loadmat(target)["scene"], scipy.io.loadmat(noisy_file)["scene"])
    assert done.windows == 1


def test_weights_from_a_file(noisy_file, tmp_path):
    torch.manual_seed(0)
    network = create_model("hcanet", bands=8, dim=8, num_blocks=(1, 1, 1), heads=(1, 1, 1))
    weights = tmp_path / "own.safetensors"
    save_weights(weights, network, name="hcanet", metadata={"data": "none"})
    done = denoise_file(noisy_file, tmp_path / "clean.mat", weights, device="cpu")
    assert done.model == str(weights)
    assert done.denoised.values == pytest.approx(denoise(done.cube.values, network), rel=1e-4)


def test_default_weights_denoise(structured_cube, rng):
    noisy = structured_cube + rng.normal(0, 30 / 255, structured_cube.shape)
    error = np.mean((denoise(noisy, device="cpu") - structured_cube) ** 2)
    assert error < 0.1 * np.mean((noisy - structured_cube) ** 2)


def test_file_reports_the_tiles_it_fell_back_to(noisy_file, tmp_path):
    network = Limited(24 * 33 - 1, MemoryError(), bands=12)
    with pytest.warns(RuntimeWarning, match="starting over") as caught:
        done = denoise_file(noisy_file, tmp_path / "clean.mat", network, tile=33)
    assert done.warnings == tuple(str(entry.message) for entry in caught)
    assert done.tile == (24, 32)


def test_file_errors_come_before_the_work(noisy_file, tmp_path):
    network = Identity(12)
    before = noisy_file.read_bytes()
    with pytest.raises(ValueError, match="is the source itself"):
        denoise_file(noisy_file, noisy_file, network)
    with pytest.raises(OSError, match="missing"):
        denoise_file(noisy_file, tmp_path / "no" / "clean.mat", network)
    with pytest.raises(OSError, match=r"gone\.mat"):
        denoise_file(tmp_path / "gone.mat", tmp_path / "clean.mat", network)
    assert network.seen == []
    assert noisy_file.read_bytes() == before


def test_failed_network_leaves_no_file(noisy_file, tmp_path):
    with pytest.raises(ArithmeticError):
        denoise_file(noisy_file, tmp_path / "clean.mat", Limited(0, ArithmeticError("broken")))
    assert [path.name for path in tmp_path.iterdir()] == ["noisy.mat"]


@pytest.mark.gpu
def test_a_gpu_gives_what_the_cpu_gives():
    network, noisy = Local(), cube(5, 50, 70)
    wanted = denoise(noisy, network, tile=32)
    assert denoise(noisy, network, tile=32, device="cuda") == pytest.approx(wanted, abs=1e-3)
    assert next(network.parameters()).device.type == "cpu"


def test_weights_may_ask_for_a_tile(tmp_path, rng):
    """The header of a weights file names the side of a tile that suits it; what the caller asks for comes first."""
    network = create_model("hcanet-bra", planes=3, dim=8, num_blocks=(0, 0, 1), num_refinement_blocks=0)
    path = tmp_path / "weights.safetensors"
    save_weights(path, network, name="hcanet-bra", metadata={"tile": "160"})
    sides = []

    def remember(_, inputs):
        sides.append(tuple(inputs[0].shape[2:]))

    noisy = rng.random((4, 150, 170), dtype=np.float32)
    for asked, tile in ((None, 170), (64, 64)):
        loaded = load_model(path)
        loaded.register_forward_pre_hook(remember)
        sides.clear()
        denoise(noisy, loaded, tile=asked)
        assert {max(side) for side in sides} == {tile}

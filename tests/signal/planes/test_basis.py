import pytest
import torch

from hsidenoise.signal.planes.basis import _smooth, band_kernels, find_basis

BANDS, HEIGHT, WIDTH = 90, 20, 25


def spectra(count: int, bands: int = BANDS) -> torch.Tensor:
    position = torch.linspace(0, 3, bands)
    return torch.stack([torch.sin((k + 1) * position + k) for k in range(count)], 1)


def scene(directions: torch.Tensor, strength: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """Mixtures of some spectra, (bands, height, width)."""
    shares = torch.randn(directions.shape[1], HEIGHT * WIDTH, generator=torch.Generator().manual_seed(seed))
    return (5.0 + directions @ (strength[:, None] * shares)).reshape(-1, HEIGHT, WIDTH)


def noisy(clean: torch.Tensor, sigma: torch.Tensor, seed: int = 1) -> torch.Tensor:
    return clean + sigma[:, None, None] * torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed))


def plain(cube: torch.Tensor, sigma: torch.Tensor, planes: int) -> torch.Tensor:
    """The slow and obvious way: eigenvectors of the covariance."""
    flat = ((cube - cube.mean((1, 2), keepdim=True)) / sigma[:, None, None]).flatten(1).double()
    return torch.linalg.eigh(flat @ flat.mT / flat.shape[1]).eigenvectors[:, -planes:].float()


def missed(basis: torch.Tensor, directions: torch.Tensor, sigma: torch.Tensor) -> float:
    """Share of the energy of clean directions that a basis does not hold."""
    whitened = directions / sigma[:, None]
    return float((whitened - basis @ (basis.mT @ whitened)).square().sum() / whitened.square().sum())


@pytest.mark.parametrize("uneven", [False, True])
def test_smooth_spectra_lose_most_of_their_noise(uneven: bool) -> None:
    truth = spectra(2)
    sigma = torch.rand(BANDS, generator=torch.Generator().manual_seed(2)) + 0.2 if uneven else torch.full((BANDS,), 0.6)
    cube = noisy(scene(truth, torch.tensor([0.5, 0.3])), sigma)
    found = find_basis(cube, sigma, band_kernels(sigma))
    assert found.basis.shape == (BANDS, 2)
    torch.testing.assert_close(found.basis.mT @ found.basis, torch.eye(2), atol=1e-5, rtol=0)
    assert missed(found.basis, truth, sigma) < 0.3 * missed(plain(cube, sigma, 2), truth, sigma)
    clean_mean = scene(truth, torch.tensor([0.5, 0.3])).mean((1, 2))
    assert (found.mean - clean_mean).square().mean() < 0.5 * (cube.mean((1, 2)) - clean_mean).square().mean()


def test_a_jump_in_a_spectrum_stays() -> None:
    truth = spectra(1)
    truth[40] -= 1.5  # a narrow absorption
    sigma = torch.full((BANDS,), 0.1)
    cube = noisy(scene(truth, torch.tensor([0.5])), sigma)
    found = find_basis(cube, sigma, band_kernels(sigma)).basis[:, :1]
    found = found * (found.mT @ truth) / found.square().sum()
    assert abs(float(found[40] - truth[40])) < 0.05
    assert missed(found / found.norm(), truth, sigma) < 1.5 * missed(plain(cube, sigma, 1), truth, sigma)


def test_rough_spectra_are_left_as_they_are() -> None:
    truth = torch.randn(BANDS, 2, generator=torch.Generator().manual_seed(3))
    sigma = torch.full((BANDS,), 0.3)
    cube = noisy(scene(truth, torch.tensor([0.5, 0.3])), sigma)
    found = find_basis(cube, sigma, band_kernels(sigma)).basis
    assert found.shape == (BANDS, 2)
    assert missed(found, truth, sigma) < 1.05 * missed(plain(cube, sigma, 2), truth, sigma)


def test_a_weak_direction_is_found_among_the_smooth_ones() -> None:
    truth, sigma = spectra(1), torch.full((BANDS,), 1.0)
    cube = noisy(scene(truth, torch.tensor([0.09])), sigma)
    flat = (cube - cube.mean((1, 2), keepdim=True)).flatten(1)
    largest = torch.linalg.eigvalsh(flat @ flat.mT / flat.shape[1])[-1]
    assert largest < (1 + (BANDS / (HEIGHT * WIDTH)) ** 0.5) ** 2 + 0.0005 * BANDS  # no more than noise may have
    # one direction there always is, of noise here; the true one beside it
    assert missed(find_basis(cube, sigma, band_kernels(sigma)).basis, truth, sigma) < 0.3
    assert missed(plain(cube, sigma, 2), truth, sigma) > 0.5


def test_noise_alone_has_one_direction() -> None:
    sigma = torch.full((BANDS,), 2.0)
    cube = noisy(torch.full((BANDS, HEIGHT, WIDTH), 5.0), sigma)
    assert find_basis(cube, sigma, band_kernels(sigma)).basis.shape == (BANDS, 1)


@pytest.mark.parametrize("bands", [1, 2, 3, 7, 8, 9])
def test_few_bands(bands: int) -> None:
    sigma = torch.linspace(0.1, 0.2, bands)
    cube = noisy(scene(spectra(1, bands), torch.tensor([1.0])), sigma)
    found = find_basis(cube, sigma, band_kernels(sigma))
    assert found.mean.shape == (bands,)
    assert 1 <= found.basis.shape[1] <= bands
    assert found.basis.isfinite().all()


def test_the_unit_does_not_matter() -> None:
    sigma = torch.linspace(0.2, 0.4, BANDS)
    cube = noisy(scene(spectra(2), torch.tensor([0.5, 0.3])), sigma)
    one, other = (find_basis(factor * cube, factor * sigma, band_kernels(factor * sigma)) for factor in (1.0, 2.0**20))
    torch.testing.assert_close(other.mean, 2.0**20 * one.mean)
    torch.testing.assert_close(other.basis @ other.basis.mT, one.basis @ one.basis.mT, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("uneven", [False, True])
def test_spectra_are_smoothed_by_the_most_likely_process(uneven: bool) -> None:
    """The slow and obvious way: the matrices of each process in the unit of the cube."""
    bands, variance = 30, torch.tensor([0.05, 0.4], dtype=torch.float64)
    scale = torch.rand(bands, generator=torch.Generator().manual_seed(2)) + 0.2 if uneven else torch.ones(bands)
    kernels = band_kernels(scale)
    noise = variance[:, None] * kernels.scale.square()
    plain = spectra(2, bands).mT.double() + noise.sqrt() * torch.randn(
        2, bands, generator=torch.Generator().manual_seed(4), dtype=torch.float64
    )
    likely, smooth = [], []
    for energy, directions in zip(kernels.energy, kernels.directions, strict=True):
        kernel = kernels.scale[:, None] * (directions * energy) @ directions.mT * kernels.scale
        torch.testing.assert_close(kernel.diagonal(), torch.ones(bands).double())
        each = []
        for spectrum, level in zip(plain, noise, strict=True):
            signal = (spectrum.square().mean() - level.mean()) * kernel
            both = signal + level.diag()
            each.append(-0.5 * (spectrum @ both.inverse() @ spectrum + both.logdet()))
            smooth.append(signal @ both.inverse() @ spectrum)
        likely.append(torch.stack(each))
    best = (0.5 * torch.stack(likely) + 0.5 * torch.stack(likely).sum(1, keepdim=True)).argmax(0)
    expected = torch.stack([smooth[2 * int(which) + number] for number, which in enumerate(best)])
    found = _smooth(plain / kernels.scale, variance, kernels) * kernels.scale
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found, plain, atol=0.1)

"""Pairs of noisy and clean patches, made on the fly and numbered, so that a run can be repeated and resumed.

A training item is a number. It alone, with the seed, decides patch and noise: ``epoch, index = divmod(number,
patches_per_epoch)`` and ``default_rng([seed, epoch, index])``. Which worker or which process makes it has no say.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NotRequired, TypedDict

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor
from torch.utils.data import Dataset, DistributedSampler

from hsidenoise.noise.cases import noise_case
from hsidenoise.signal.spectral_wiener import SpectralEstimate
from hsidenoise.training.patches import BandAugment, CubeStore, scaled

# Validation noise must not be a noise that training has seen: its generator gets a number of its own in front.
_VALIDATION_STREAM = 0x5641_4C49


class Pair(TypedDict):
    """One item: a noisy and a clean (bands, height, width) tensor, the noise case, and the item's weight in means."""

    noisy: Tensor
    clean: Tensor
    case: str
    weight: float
    estimate: NotRequired[SpectralEstimate]


class Batch(TypedDict):
    """Items put together: (batch, bands, height, width) tensors, names of the noise cases, weights (batch).

    ``estimate``, if asked for, is the spectral Wiener estimate of ``noisy``.
    """

    noisy: Tensor
    clean: Tensor
    case: list[str]
    weight: Tensor
    estimate: NotRequired[SpectralEstimate]


class SyntheticNoise:
    """Adds the noise of a case drawn from a list.

    Args:
        cases: Names of noise cases, drawn alike; or name -> weight, drawn in proportion to it.

    Raises:
        ValueError: If there is no case, a name is unknown, or a weight is not a positive number.

    Example:
        >>> noise = SyntheticNoise({"gaussian-50": 3, "mixture": 1})
        >>> noisy, case = noise(np.zeros((6, 4, 5), dtype=np.float32), np.random.default_rng(0))
        >>> noisy.shape, case
        ((6, 4, 5), 'gaussian-50')
    """

    def __init__(self, cases: Sequence[str] | Mapping[str, float]) -> None:
        weights = dict(cases) if isinstance(cases, Mapping) else dict.fromkeys(cases, 1.0)
        if not weights:
            raise ValueError("no noise case: name at least one")
        if not all(np.isfinite(weight) and weight > 0 for weight in weights.values()):
            raise ValueError(f"weights of noise cases must be positive numbers, got {weights}")
        self.cases = [noise_case(name) for name in weights]
        share = np.array(list(weights.values()), dtype=np.float64)
        self.probabilities = share / share.sum()

    @property
    def names(self) -> list[str]:
        """Names of the cases."""
        return [case.name for case in self.cases]

    def __call__(
        self, clean: Float32[np.ndarray, "bands height width"], rng: np.random.Generator
    ) -> tuple[Float32[np.ndarray, "bands height width"], str]:
        """Draw a case and add its noise to a copy.

        Args:
            clean: Clean cube or patch scaled to [0, 1]; left untouched.
            rng: Source of randomness.

        Returns:
            The noisy cube and the name of the case.
        """
        case = self.cases[int(rng.choice(len(self.cases), p=self.probabilities))]
        return case.add(clean, rng).noisy, case.name


class TrainingPairs(Dataset[Pair]):
    """Endless numbered items: item ``n`` is item ``n % patches_per_epoch`` of epoch ``n // patches_per_epoch``.

    Args:
        store: Clean cubes.
        noise: Noise to add.
        patches_per_epoch: Items of an epoch.
        seed: Seed of the run, not negative.
        augment: Whether patches are flipped, turned and band-reversed.
        bands: How many bands, how far apart, by the number of the batch. None: those of the store.
        batch_size: Items of a step, all processes together; only ``bands`` asks.
        gain: Smallest and largest factor of the brightness of a patch.
        extra: Further clean cubes.
        extra_share: Share of the items that are cut from ``extra``, 0 to 1.
        estimate: Makes the spectral Wiener estimate of noisy patches, with the settings of the network in training.
            None: an item brings none.

    Raises:
        ValueError: If a number is out of range.
    """

    def __init__(
        self,
        store: CubeStore,
        noise: SyntheticNoise,
        *,
        patches_per_epoch: int,
        seed: int = 0,
        augment: bool = True,
        bands: BandAugment | None = None,
        batch_size: int = 1,
        gain: tuple[float, float] = (1.0, 1.0),
        extra: CubeStore | None = None,
        extra_share: float = 0.0,
        estimate: Callable[[Tensor], SpectralEstimate] | None = None,
    ) -> None:
        if patches_per_epoch < 1:
            raise ValueError(f"{patches_per_epoch} patches per epoch: at least 1 is needed")
        if not 0 < gain[0] <= gain[1] or not 0 <= extra_share <= 1:
            raise ValueError(
                f"gain {list(gain)} must be two rising numbers above 0, the share of extra cubes {extra_share:g} from "
                f"0 to 1"
            )
        self.store, self.noise, self.seed, self.augment = store, noise, seed, augment
        self.patches_per_epoch, self.batch_size, self.gain = patches_per_epoch, batch_size, gain
        self.bands = bands if bands is not None and bands.active else None
        self.extra, self.extra_share, self.estimate = extra, extra_share, estimate
        stores = [store] if extra is None else [store, extra]
        self._available = min(each.fewest_bands for each in stores)

    def __len__(self) -> int:
        return self.patches_per_epoch

    def __getitem__(self, number: int) -> Pair:
        """Make item ``number``, which may be of any epoch."""
        epoch, index = divmod(number, self.patches_per_epoch)
        rng = np.random.default_rng([self.seed, epoch, index])
        chosen = None
        if self.bands is not None:
            chosen = self.bands.choice(self.seed, number // self.batch_size, self._available)
        # nothing is drawn for what is off: the items of a run without these options stay what they were
        store = self.extra if self.extra is not None and rng.random() < self.extra_share else self.store
        clean = scaled(store.patch(rng, augment=self.augment, chosen=chosen), self.gain, rng)
        values, name = self.noise(clean, rng)
        noisy = torch.from_numpy(values)
        pair = Pair(noisy=noisy, clean=torch.from_numpy(clean), case=name, weight=1.0)
        if self.estimate is not None:
            pair["estimate"] = SpectralEstimate(*(part[0] for part in self.estimate(noisy[None])))
        return pair


class ValidationPairs(Dataset[Pair]):
    """Every clean cube with every noise case, the noise fixed by seed, case and cube.

    Args:
        cubes: Clean cubes scaled to [0, 1].
        cases: Names of noise cases.
        seed: Seed of the noise, not negative.
    """

    def __init__(self, cubes: Sequence[np.ndarray], cases: Sequence[str], *, seed: int = 0) -> None:
        if not cubes or not cases:
            raise ValueError("validation needs at least one cube and one noise case")
        self.cubes, self.cases, self.seed = list(cubes), [noise_case(name) for name in cases], seed

    def __len__(self) -> int:
        return len(self.cubes) * len(self.cases)

    def __getitem__(self, number: int) -> Pair:
        """Make item ``number``; a number past the end repeats an item with weight 0 (to fill the last process)."""
        index = number % len(self)
        case, cube = divmod(index, len(self.cubes))
        rng = np.random.default_rng([_VALIDATION_STREAM, self.seed, case, cube])
        clean = self.cubes[cube]
        noisy = self.cases[case].add(clean, rng).noisy
        return Pair(
            noisy=torch.from_numpy(noisy),
            clean=torch.from_numpy(clean),
            case=self.cases[case].name,
            weight=float(number < len(self)),
        )


class TurnSampler(DistributedSampler[Pair]):
    """Numbers of the items of one process: every ``processes``-th of an epoch, from where training stands.

    Two processes with batches of 4 see, step by step, the same items as one process with batches of 8. It is a
    ``DistributedSampler`` so that Lightning leaves it in place.

    Args:
        dataset: The items.
        process: Number of this process, from 0.
        processes: How many processes share the items.
        start: Number of the first item; asked whenever an epoch begins, so that a resumed run goes on where it stopped.

    Example:
        >>> items = torch.utils.data.TensorDataset(torch.zeros(6))
        >>> list(TurnSampler(items, process=1, processes=2, start=lambda: 12))
        [13, 15, 17]
    """

    def __init__(
        self,
        dataset: Dataset[Pair],
        *,
        process: int = 0,
        processes: int = 1,
        start: Callable[[], int] = int,
    ) -> None:
        super().__init__(dataset, num_replicas=processes, rank=process, shuffle=False)
        self.start = start

    def __iter__(self) -> Iterator[int]:  # type: ignore[override]
        """Yield as many numbers in every process; past the end of the data set where they do not divide evenly."""
        start = self.start()
        return iter(range(start + self.rank, start + self.total_size, self.num_replicas))

"""Pairs of noisy and clean patches, made on the fly and numbered, so that a run can be repeated and resumed.

A training item is a number. It alone, with the seed, decides patch and noise: ``epoch, index = divmod(number,
patches_per_epoch)`` and ``default_rng([seed, epoch, index])``. Which worker or which process makes it has no say.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NotRequired, TypedDict

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor
from torch.utils.data import Dataset, DistributedSampler

from hsidenoise.noise.cases import noise_case
from hsidenoise.training.patches import BandAugment, CubeStore, another_sensor, band_count, scaled

# Validation noise must not be a noise that training has seen: its generator gets a number of its own in front.
_VALIDATION_STREAM = 0x5641_4C49

# Where a patch that is drawn again is cut and mirrored: beside the numbers that made it.
_DRAW_STREAM = 0x4452_4157

_BATCHES_BETWEEN = 60
"""Batches until a patch is drawn again: far enough apart for the optimiser, and a number that most counts of workers
divide, so that it comes to the worker that has made it."""


Estimate = Any
"""What networks do not learn but start from: a named tuple of tensors."""


class Pair(TypedDict):
    """One item: a noisy and a clean (bands, height, width) tensor, the noise case, and the item's weight in means."""

    noisy: Tensor
    clean: Tensor
    case: str
    weight: float
    estimate: NotRequired[Estimate]


class Batch(TypedDict):
    """Items put together: (batch, bands, height, width) tensors, names of the noise cases, weights (batch).

    ``estimate``, if asked for, is what the network in training does not learn but starts from.
    """

    noisy: Tensor
    clean: Tensor
    case: list[str]
    weight: Tensor
    estimate: NotRequired[Estimate]


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
        bands: How many bands, how far apart, by the number of the batch; or a pair: fewest and most, for a network that
            takes any number (:func:`hsidenoise.training.patches.another_sensor`). None: those of the store.
        batch_size: Items of a step, all processes together.
        gain: Smallest and largest factor of the brightness of a patch.
        extra: Further clean cubes.
        extra_share: Share of the items that are cut from ``extra``, 0 to 1.
        estimate: Makes what the network in training does not learn, of noisy patches. None: an item brings none.
        draws: How often a patch with its noise and its estimate is drawn, each time mirrored and cut another way.
        cut: Side of the square that is cut of a patch after its estimate was made, in pixels. None: all of it.

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
        bands: BandAugment | tuple[int, int] | None = None,
        batch_size: int = 1,
        gain: tuple[float, float] = (1.0, 1.0),
        extra: CubeStore | None = None,
        extra_share: float = 0.0,
        estimate: Callable[[Tensor], Estimate] | None = None,
        draws: int = 1,
        cut: int | None = None,
    ) -> None:
        if patches_per_epoch < 1:
            raise ValueError(f"{patches_per_epoch} patches per epoch: at least 1 is needed")
        if not 0 < gain[0] <= gain[1] or not 0 <= extra_share <= 1:
            raise ValueError(
                f"gain {list(gain)} must be two rising numbers above 0, the share of extra cubes {extra_share:g} from "
                f"0 to 1"
            )
        if draws < 1 or not 1 <= (1 if cut is None else cut) <= store.patch_size:
            raise ValueError(
                f"draws={draws} must be at least 1, and cut={cut} from 1 to the side of a patch, {store.patch_size}"
            )
        self.store, self.noise, self.seed, self.augment = store, noise, seed, augment
        self.patches_per_epoch, self.batch_size, self.gain = patches_per_epoch, batch_size, gain
        self.bands = None if isinstance(bands, BandAugment) and not bands.active else bands
        self.extra, self.extra_share, self.estimate = extra, extra_share, estimate
        self.draws, self.cut = draws, cut
        stores = [store] if extra is None else [store, extra]
        self._available = min(each.fewest_bands for each in stores)
        self._made: OrderedDict[int, Pair] = OrderedDict()

    def __len__(self) -> int:
        return self.patches_per_epoch

    def __getitem__(self, number: int) -> Pair:
        """Make item ``number``, which may be of any epoch."""
        if self.draws == 1 and self.cut is None:
            return self._make(number)
        # groups of so many items go round as often as there are draws; what is kept only saves time
        group = self.batch_size * _BATCHES_BETWEEN
        made = number // (group * self.draws) * group + number % group
        if made not in self._made:
            self._made[made] = self._make(made)
            if len(self._made) > group:
                self._made.popitem(last=False)
        return self._cut(self._made[made], np.random.default_rng([_DRAW_STREAM, self.seed, number]))

    def _make(self, number: int) -> Pair:
        epoch, index = divmod(number, self.patches_per_epoch)
        rng = np.random.default_rng([self.seed, epoch, index])
        chosen, count = None, None
        if isinstance(self.bands, BandAugment):
            chosen = self.bands.choice(self.seed, number // self.batch_size, self._available)
        elif self.bands is not None:
            count = band_count(self.bands, self.seed, number // self.batch_size)
        # nothing is drawn for what is off: the items of a run without these options stay what they were
        store = self.extra if self.extra is not None and rng.random() < self.extra_share else self.store
        clean = store.patch(rng, augment=self.augment, chosen=chosen)
        if count is not None:
            clean = another_sensor(clean, count, rng)
        clean = scaled(clean, self.gain, rng)
        values, name = self.noise(clean, rng)
        noisy = torch.from_numpy(values)
        pair = Pair(noisy=noisy, clean=torch.from_numpy(clean), case=name, weight=1.0)
        if self.estimate is not None:
            found = self.estimate(noisy[None])
            pair["estimate"] = found._make(part[0] for part in found)
        return pair

    def _cut(self, pair: Pair, rng: np.random.Generator) -> Pair:
        """A square of a pair, mirrored: rows, columns, and the diagonal."""
        side = self.store.patch_size
        cut = self.cut or side
        top, left = (int(rng.integers(side - cut + 1)) for _ in range(2))
        axes = [axis for axis in (-2, -1) if rng.integers(2)]
        turn = bool(rng.integers(2))

        def of(part: Tensor) -> Tensor:
            if part.ndim < 3:  # no image
                return part
            square = part[:, top : top + cut, left : left + cut].flip(axes)
            return (square.mT if turn else square).contiguous()

        result = Pair(noisy=of(pair["noisy"]), clean=of(pair["clean"]), case=pair["case"], weight=pair["weight"])
        if "estimate" in pair:
            result["estimate"] = pair["estimate"]._make(of(part) for part in pair["estimate"])
        return result


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

"""The Lightning seam of the data: which scenes, which patches, which noise, in batches."""

from __future__ import annotations

import json
import os
import signal
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
from torch import Tensor
from torch.utils.data import DataLoader

from hsidenoise.data.datasets import DATASETS, scene_name
from hsidenoise.data.scenes import NEEDED, Scenes, cubes_in, find_scenes, read_clean
from hsidenoise.data.sources import is_cube
from hsidenoise.models.unet import MixingUNet
from hsidenoise.training.pairs import Pair, SyntheticNoise, TrainingPairs, TurnSampler, ValidationPairs
from hsidenoise.training.patches import SCALES, BandAugment, Cache, CubeStore

#: Weights of the noise cases of a blind network: what the shipped weights were trained on.
BLIND = {
    "gaussian-0-75": 3.0,
    "gaussian-0-10": 1.0,
    "blind": 1.0,
    "non-iid": 2.0,
    "stripe": 2.0,
    "deadline": 2.0,
    "impulse": 2.0,
    "mixture": 3.0,
    "t3sc-uniform-15": 0.5,
    "t3sc-uniform-55": 0.5,
    "t3sc-uniform-95": 0.5,
    "t3sc-correlated": 0.5,
    "t3sc-stripes": 0.5,
    "mafnet-mixture": 1.0,
}

#: Cases of the published tables (QRNN3D and its followers) and one of low noise: those of a validation.
TABLE_CASES = (
    *("gaussian-5", "gaussian-30", "gaussian-50", "gaussian-70"),
    *("non-iid", "stripe", "deadline", "impulse", "mixture"),
)


class CubeDataModule(pl.LightningDataModule):
    """Noisy and clean patches of a data set for training, centre crops with fixed noise for validation.

    A batch is a dictionary: ``noisy`` and ``clean`` (batch, bands, height, width) in [0, 1] before noise, ``case``
    (names of the noise cases), ``weight`` (1, or 0 for an item that only fills up the last process).

    Args:
        root: Folder of the cubes.
        dataset: Data set: ``folder`` (cubes of any format; sub-folders train, validation, test if present), ``cave`` or
            ``icvl``.
        split: Published split of the data set, its first by default.
        missing: ``error``, or ``skip`` to go on without scenes of the split that are not there.
        bands: Bands of the network. Of a cube with more, a random run of neighbouring bands is taken. A pair, for a
            network that takes any number: fewest and most of a patch; a number between is drawn for each batch.
        patch_size: Side of a training patch in pixels.
        batch_size: Patches of a batch, per process.
        patches_per_epoch: Patches between two validations, all processes together; rounded down to whole batches.
        scales: Factors in (0, 1] by which the cubes are reduced before patches are cut.
        train_crop: Side of the centre square of each training cube that is used, in pixels. None: all of it.
        augment: Whether patches are flipped, turned by quarter turns and reversed in their bands.
        band_strides: Strides, one drawn for each batch: with 2 its patches have every second band. For networks that
            take fewer bands than they were made for, as HCANetBRA does; so is ``fewest_bands``.
        fewest_bands: Fewest bands of a patch; for each batch a number from there on is drawn. None: all there are.
        gain: Smallest and largest factor, drawn for each patch, of its brightness before noise is added.
        extra: Further clean cubes, or folders of them, of any size and at least ``bands`` bands.
        extra_share: Share of the patches that are cut from ``extra``, 0 to 1.
        estimate: Whether the workers make what the network in training does not learn but starts from, with its
            settings (on a GPU, its small decompositions take long). A core takes 10 ms for 64 pixels and 50 ms for 96
            for the spectral Wiener estimate of HCANetBRA, a second for the planes of a patch of 128 pixels.
        draws: How often a patch with its noise and its estimate is used, each time mirrored and cut another way.
        cut: Side of the square of it that is used each time, in pixels. None: all of it.
        noise: Noise cases to train on, drawn alike; or a weight for each. Blind over all of them by default.
        validation_noise: Noise cases of validation; each is applied to each validation cube.
        validation_crop: Side of the centre square of a validation cube, in pixels.
        workers: Processes that prepare patches; ``auto``: one per CPU core but one, at most 8.
        seed: Seed of patches and noise, not negative. With it, the number of an item decides all about it.
        cache: ``memory``, ``mmap`` or ``auto`` (memory if the cubes fit in half of what is free).
        cache_dir: Folder of memory-mapped cubes; by default one in the system's temporary folder.

    Raises:
        ValueError: If an option is out of range or a noise case or data set is unknown.

    Example:
        >>> CubeDataModule(root="cubes", noise=["gaussian-50", "mixture"]).noise.names
        ['gaussian-50', 'mixture']
    """

    def __init__(
        self,
        root: str,
        dataset: str = "folder",
        split: str | None = None,
        missing: Literal["error", "skip"] = "error",
        bands: int | tuple[int, int] = 31,
        patch_size: int = 64,
        batch_size: int = 8,
        patches_per_epoch: int = 4000,
        scales: Sequence[float] = SCALES,
        train_crop: int | None = None,
        augment: bool = True,
        band_strides: Sequence[int] = (1,),
        fewest_bands: int | None = None,
        gain: tuple[float, float] = (1.0, 1.0),
        extra: Sequence[str] = (),
        extra_share: float = 0.1,
        estimate: bool = False,
        draws: int = 1,
        cut: int | None = None,
        noise: Sequence[str] | Mapping[str, float] = BLIND,
        validation_noise: Sequence[str] = TABLE_CASES,
        validation_crop: int = 256,
        workers: int | Literal["auto"] = "auto",
        seed: int = 0,
        cache: Cache = "auto",
        cache_dir: str | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)  # for checkpoints: a resumed run compares
        if dataset not in DATASETS:
            raise ValueError(f"unknown data set '{dataset}'; known: {', '.join(DATASETS)}")
        for name, value, least, most in (
            ("batch_size", batch_size, 1, 2**16),
            *(("bands", each, 1, 4096) for each in ([bands] if isinstance(bands, int) else bands)),
            ("patch_size", patch_size, 1, 4096),
            ("patches_per_epoch", patches_per_epoch, 1, 2**40),
            ("train_crop", train_crop, 1, 2**20),
            ("validation_crop", validation_crop, 1, 2**20),
            ("workers", workers, 0, 1024),
            ("seed", seed, 0, 2**63 - 1),
            ("draws", draws, 1, 1024),
            ("cut", cut, 1, patch_size),
        ):
            if isinstance(value, int) and not least <= value <= most:
                raise ValueError(f"data.{name} is {value}: a whole number from {least} to {most} is expected")
        self.root, self.dataset, self.split, self.missing = Path(root), dataset, split, missing
        if not isinstance(bands, int) and bands[0] > bands[1]:
            raise ValueError(f"data.bands is {list(bands)}: fewest and most bands are expected, in this order")
        self.bands, self.patch_size, self.batch_size = bands, patch_size, batch_size
        self._own_bands = bands if isinstance(bands, int) else None  # of each patch as it is cut
        self.patches_per_epoch, self.scales, self.train_crop = patches_per_epoch, tuple(scales), train_crop
        self.augment, self.noise, self.validation_noise = augment, SyntheticNoise(noise), list(validation_noise)
        self.validation_crop, self.workers, self.seed = validation_crop, workers, seed
        self.cache, self.cache_dir = cache, cache_dir
        self.band_augment = BandAugment(bands if isinstance(bands, int) else bands[1], band_strides, fewest_bands)
        if self._own_bands is None and self.band_augment.active:
            raise ValueError("data.band_strides and fewest_bands go with a network of so many bands: leave them out")
        self.draws, self.cut = draws, cut
        self.gain, self.estimate = (float(gain[0]), float(gain[1])), estimate
        self.extra, self.extra_share = tuple(Path(path) for path in extra), extra_share
        SyntheticNoise(self.validation_noise)  # a misspelt case fails here, not at the first validation
        self.scenes: Scenes | None = None
        self._train: TrainingPairs | None = None
        self._validation: ValidationPairs | None = None

    def locate(self) -> Scenes:
        """Find the files of the data set, without reading them.

        Raises:
            ValueError: If a scene is missing, a part is empty, or a scene is in two parts.
            FileNotFoundError: If ``root`` is not a folder.
        """
        found: list[Path] = []
        for path in self.extra:
            if not path.exists():
                raise FileNotFoundError(f"{path}: no such file or folder; --data.extra names clean cubes")
            cubes = cubes_in(path) if path.is_dir() and not is_cube(path) else [path]
            if not cubes:
                raise ValueError(f"{path}: no cube in it for --data.extra; {NEEDED}")
            found += cubes
        self.extra = tuple(found)
        if self.scenes is None:
            self.scenes = find_scenes(self.dataset, self.root, split=self.split, missing=self.missing)
        return self.scenes

    def setup(self, stage: str) -> None:
        """Find and read the cubes.

        Args:
            stage: Lightning's stage; only ``fit`` needs training cubes.
        """
        scenes = self.locate()
        key = DATASETS[self.dataset].key
        if stage == "fit" and self._train is None:
            store = CubeStore(
                scenes.train,
                patch_size=self.patch_size,
                bands=self._own_bands,
                scales=self.scales,
                cache=self.cache,
                cache_dir=self.cache_dir,
                key=key,
                crop=self.train_crop,
                ragged=True,
            )
            together = self.batch_size * self._processes
            epoch = self.patches_per_epoch // together * together
            if not epoch:
                raise ValueError(
                    f"{self.patches_per_epoch} patches per epoch do not fill one batch of {together}: raise "
                    f"--data.patches_per_epoch or lower --data.batch_size"
                )
            self._train = TrainingPairs(
                store,
                self.noise,
                patches_per_epoch=epoch,
                seed=self.seed,
                augment=self.augment,
                bands=self.band_augment if isinstance(self.bands, int) else self.bands,
                batch_size=together,
                gain=self.gain,
                extra=self._extra_store(),
                extra_share=self.extra_share,
                estimate=self._estimate(),
                draws=self.draws,
                cut=self.cut,
            )
        if stage in ("fit", "validate") and self._validation is None:
            cubes = []
            for path in scenes.validation:
                cube = read_clean(path, key=key, crop=self.validation_crop, valid_part=True)
                if self._own_bands is not None:
                    if len(cube) < self._own_bands:
                        raise ValueError(f"{path}: {len(cube)} bands, {self._own_bands} are needed: lower --data.bands")
                    cube = centre_bands(cube, self._own_bands)
                cubes.append(cube)
            self._validation = ValidationPairs(cubes, self.validation_noise, seed=self.seed)

    def _estimate(self) -> Callable[[Tensor], tuple[Tensor, ...]] | None:
        """What the network in training starts from, without the network itself, which workers need not have."""
        if not self.estimate:
            return None
        task = self.trainer.lightning_module if self.trainer is not None else None
        network = getattr(task, "network", None)
        if not isinstance(network, MixingUNet) or network.estimator is None:
            raise ValueError(
                "the network in training does not start from what is not learnt: leave out --data.estimate"
            )
        return network.estimator

    def _extra_store(self) -> CubeStore | None:
        if not self.extra:
            return None
        return CubeStore(
            self.extra,
            patch_size=self.patch_size,
            bands=self._own_bands,
            scales=self.scales,
            cache=self.cache,
            cache_dir=self.cache_dir,
            mirror=True,
            ragged=True,
        )

    def train_dataloader(self) -> DataLoader[Pair]:
        """Batches of patches, an epoch at a time, from where training stands."""
        assert self._train is not None, "setup('fit') comes first"
        return ResumableLoader(
            self._train,
            batch_size=self.batch_size,
            sampler=TurnSampler(self._train, process=self._process, processes=self._processes, start=self._next_item),
            drop_last=True,
            **self._worker_options(),
        )

    def val_dataloader(self) -> DataLoader[Pair]:
        """Each validation cube with each noise case; one by one, since cubes may differ in size."""
        assert self._validation is not None, "setup('fit') or setup('validate') comes first"
        sampler = TurnSampler(self._validation, process=self._process, processes=self._processes)
        return DataLoader(self._validation, batch_size=1, sampler=sampler)

    def description(self) -> dict[str, str]:
        """What the training data is, for the header of a weights file."""
        scenes = ", ".join(path.stem for path in self.scenes.train) if self.scenes else ""
        validation = ", ".join(path.stem for path in self.scenes.validation) if self.scenes else ""
        extra = f"; {self.extra_share:g} of the patches: {', '.join(p.stem for p in self.extra)}" if self.extra else ""
        bands = self.bands if isinstance(self.bands, int) else f"({self.bands[0]} to {self.bands[1]})"
        noise = zip(self.noise.names, self.noise.probabilities, strict=True)
        return {
            "data": f"{self.dataset}{f' ({self.split})' if self.split else ''}: {scenes}{extra}",
            "validation": validation,
            "noise": ", ".join(f"{name} {share:.3f}" for name, share in noise),
            "patches": f"{bands}x{self.patch_size}x{self.patch_size} at scales "
            + ", ".join(f"{scale:g}" for scale in self.scales),
            "band_strides": ", ".join(str(stride) for stride in self.band_augment.strides),
            "fewest_bands": str(self.band_augment.fewest or "all"),
            "gain": f"{self.gain[0]:g} to {self.gain[1]:g}",
            "data_seed": str(self.seed),
            "training_scenes": json.dumps(self.scene_names()),
            "validation_scenes": json.dumps(self.scene_names("validation")),
        }

    def scene_names(self, part: Literal["train", "validation"] = "train") -> list[str]:
        """Sorted names of the scenes of one part, as ``hsidenoise.data.datasets.scene_name`` gives them.

        Args:
            part: Which part.
        """
        extra = self.extra if part == "train" else ()
        return sorted({scene_name(path) for path in (*getattr(self.scenes, part, ()), *extra)})

    def state_dict(self) -> dict[str, Any]:
        """The scenes, for a checkpoint: position follows from the trainer's count of batches."""
        return {"scenes": self.scene_names()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Warn if the checkpoint's run had other scenes.

        Args:
            state_dict: As a checkpoint holds it.
        """
        before, now = set(state_dict["scenes"]), set(self.scene_names())
        if before != now:
            warnings.warn(
                f"{self.root}: the run is resumed on other scenes: {len(before - now)} gone, {len(now - before)} new "
                f"({', '.join(sorted(before ^ now)[:5])})",
                stacklevel=2,
            )

    @property
    def _process(self) -> int:
        return int(self.trainer.global_rank) if self.trainer is not None else 0

    @property
    def _processes(self) -> int:
        return int(self.trainer.world_size) if self.trainer is not None else 1

    def _next_item(self) -> int:
        """Number of the next item: batches done so far in this run, resumed ones included, times their size.

        Lightning's count over all epochs is saved in checkpoints, so this holds after resuming inside an epoch too.
        """
        if self.trainer is None:
            return 0
        progress = self.trainer.fit_loop.epoch_loop.batch_progress
        return int(progress.total.processed) * self.batch_size * self._processes  # type: ignore[attr-defined]

    def _worker_options(self) -> dict[str, Any]:
        if isinstance(self.workers, int):
            workers = self.workers
        else:
            cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
            workers = min(8, max(0, cores // self._processes - 1))
        pin = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        return {
            "num_workers": workers,
            "persistent_workers": workers > 0,
            "pin_memory": pin,
            "worker_init_fn": _ignore_interrupts,
        }


def centre_bands(cube: Any, bands: int) -> Any:
    """The middle ``bands`` of a cube (a view).

    Args:
        cube: (bands, height, width) array.
        bands: How many, at most as many as the cube has.

    Example:
        >>> import numpy as np
        >>> centre_bands(np.zeros((9, 2, 3)), 4).shape
        (4, 2, 3)
    """
    first = (len(cube) - bands) // 2
    return cube[first : first + bands]


class ResumableLoader(DataLoader[Pair]):
    """A loader whose position follows from the trainer's count of batches, so it has no state of its own to save.

    The two methods tell Lightning that resuming inside an epoch is safe.

    Attributes:
        seconds_waited: Seconds that batches were waited for since the loader was made.
    """

    seconds_waited = 0.0

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """Batches of one epoch; the time until each comes is added up."""
        return self._timed(super().__iter__())

    def _timed(self, batches: Iterator[Any]) -> Iterator[Any]:
        while True:
            began = time.perf_counter()
            batch = next(batches, None)
            self.seconds_waited += time.perf_counter() - began
            if batch is None:
                return
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the sampler asks the trainer where training stands."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing to restore."""


def _ignore_interrupts(worker: int) -> None:
    """Leave Ctrl-C, which reaches every process of a terminal, to the main one: when to end is for it to say."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

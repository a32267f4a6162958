"""The verbs of the command line: what each reads, calls and prints. `cli` parses their options.

A verb prints what it understood and what it chose, because a cube read along the wrong axis or scaled by the wrong
rule gives a wrong result without any error.
"""

import argparse
import dataclasses
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from hsidenoise.data.io import Cube, Variable, check_cube_target, list_variables, read_cube, write_arrays
from hsidenoise.data.layout import printable
from hsidenoise.data.noisy_sets import CLEAN_KEY, NOISY_KEY, SIGMA_KEY, published_arrays
from hsidenoise.system.files import check_source, check_target


def denoise(options: argparse.Namespace) -> None:
    """Denoise the cube of a file."""
    source = Path(options.noisy)
    target = Path(options.output) if options.output else _beside(source)
    check_source(source)  # first: where the output is wrong too, the input is what is meant
    _check_picture(options, source, target)

    from hsidenoise.inference.denoise import denoise_file

    if options.passes is not None:
        options.pilot_rounds = options.passes - 1
        print(f"hsidenoise: hint: --passes {options.passes} is --pilot-rounds {options.pilot_rounds}", file=sys.stderr)
    done = denoise_file(
        source,
        target,
        options.weights,
        key=options.key,
        axes=options.axes,
        size=options.size,
        allow_external=options.allow_external,
        tile=options.tile,
        overlap=options.overlap,
        batch=options.batch,
        normalize=options.normalize,
        device=options.device,
        precision=options.precision,
        compile=options.compile,
        ensemble=options.ensemble,
        join=options.join,
        pilot_rounds=options.pilot_rounds,
        progress=sys.stderr is not None and sys.stderr.isatty(),
    )
    _print_read(source, done.cube)
    print(f"scaling  {done.scaling.mode}: {done.scaling.reason}")
    tiles = f"tiles of {done.tile[0]} x {done.tile[1]}, overlap {done.overlap}"
    windows = f", {done.windows} windows of bands{' joined' * options.join}" if done.windows > 1 else ""
    if options.ensemble > 1:
        windows += f", ensemble of {options.ensemble}"
    if done.pilot_rounds:
        windows += f", pilot filter{f' x {done.pilot_rounds}' * (done.pilot_rounds > 1)}"
    print(f"network  {done.model} on {done.device}, {tiles}{windows}, {done.seconds:.1f} s")
    print(f"wrote    {target}")
    if options.picture:
        from hsidenoise.figures.before_after import before_after

        clean = _clean_of(source, done.cube)
        before_after(
            _single(done.cube.values),
            _single(done.denoised.values),
            None if clean is None else _single(clean),
            wavelengths=done.cube.wavelengths,
            band=options.band,
            path=options.picture,
        )
        print(f"picture  {options.picture}")


def inspect(options: argparse.Namespace) -> None:
    """Say what a file holds and how it would be read."""
    path = Path(options.cube)
    variables = list_variables(path, allow_external=options.allow_external)
    told = options.key or options.axes or options.size
    cube, problem = None, None
    try:
        cube = read_cube(
            path, key=options.key, axes=options.axes, size=options.size, allow_external=options.allow_external
        )
    except ValueError as error:
        # The list of variables is the answer to most problems of reading, so it is shown all the same.
        if told:
            raise
        problem = " ".join(str(error).split())
    facts = None if cube is None else _facts(cube)
    if options.json:
        rows = [{"name": item.name, "shape": item.shape, "dtype": _type(item), "note": item.note} for item in variables]
        print(json.dumps({"file": str(path), "variables": rows, "cube": facts, "problem": problem}, indent=2))
        return
    print(f"{path}: {len(variables)} variable{'s' * (len(variables) != 1)}")
    for item in variables:
        shape = " x ".join(str(size) for size in item.shape)
        print(f"  {item.label:<24} {shape:<20} {_type(item) or '':<10} {item.note}".rstrip())
    if facts is None:
        print(f"no cube chosen: {problem}")
        return
    low, high = facts["range"]
    first, last = facts["wavelengths"] or (None, None)
    print(f"cube         {facts['variable']}, {facts['bands']} bands, height {facts['height']}, width {facts['width']}")
    print(f"axes         {facts['axes']}: {facts['reason']}")
    print(f"range        {low:g} to {high:g}")
    for found in facts["not_data"]:
        print(f"no data?     {found}")
    print("wavelengths  " + ("not in the file" if first is None else f"{first:g} to {last:g} nm"))
    level, bad = facts["noise"], facts["bad_bands"]
    if level is None:
        print("noise        not estimated: that takes 2 x 2 pixels")
        return
    print(
        f"noise        estimated, median over the bands {level['median']:.4g} ({level['median_share']:.2%} of the "
        f"range); worst band {level['worst_band']} (0-based) {level['worst']:.4g}"
    )
    print("bad bands    " + (", ".join(str(band) for band in bad) + " (0-based)" if bad else "none found"))


def corrupt(options: argparse.Namespace) -> None:
    """Write a noisy cube, its clean one and the noise level, as the published noisy sets do."""
    from hsidenoise.noise.cases import corrupt, noise_case
    from hsidenoise.signal.scaling import centre_crop, to_unit_range

    case = noise_case(options.noise)
    source, target = Path(options.clean), Path(options.noisy)
    check_source(source)
    if target.exists() and target.samefile(source):
        raise ValueError(f"{target}: is the clean cube itself; name another output")
    check_cube_target(target)
    key = options.key or _preferred(source, CLEAN_KEY)
    cube = read_cube(source, key=key, axes=options.axes, size=options.size, allow_external=options.allow_external)
    _print_read(source, cube)
    clean = cube.values
    if options.crop is not None:
        if options.crop > min(clean.shape[1:]):
            raise ValueError(f"--crop {options.crop}: {source} has only {_sizes(cube)}; choose less")
        clean = centre_crop(clean, options.crop)
        print(f"crop     centre {options.crop} x {options.crop}")
    low, high = float(clean.min()), float(clean.max())
    if options.minmax:
        clean, low, high = to_unit_range(clean, str(source))
        print(f"scaling  ({low:g} .. {high:g}) to (0 .. 1), one scale for the whole cube")
    elif low < 0 or high > 1:
        warnings.warn(
            f"--no-minmax: the values reach from {low:g} to {high:g}, but the noise is made for [0, 1]", stacklevel=1
        )
    result = corrupt(clean, case, seed=options.seed)
    write_arrays(target, published_arrays(result.noisy, clean, result.sigma, cube.wavelengths))
    sigma = result.sigma * 255
    print(
        f"noise    {case.name}, seed {options.seed}: {case.definition}; sigma {sigma.min():g} to {sigma.max():g} of 255"
    )
    for kind, bands in result.affected.items():
        if not len(bands):
            warnings.warn(
                f"{kind} on no band: it takes a third of the bands, and {len(clean)} are too few", stacklevel=1
            )
            continue
        print(f"         {kind} on {len(bands)} bands: {', '.join(str(band) for band in bands)} (0-based)")
    print(f"wrote    {target}: {NOISY_KEY}, {CLEAN_KEY} (height, width, bands), {SIGMA_KEY} (0-255 scale)")


def evaluate(options: argparse.Namespace) -> None:
    """Measure a denoised cube against the clean one."""
    from hsidenoise.metrics.functional import PROTOCOLS, evaluate
    from hsidenoise.signal.mask import scorable, spans

    denoised_path, clean_path = Path(options.denoised), Path(options.clean)
    key = options.key or _preferred(denoised_path, NOISY_KEY)
    external = options.allow_external
    denoised = read_cube(
        denoised_path, key=key, axes=options.axes, size=options.size, allow_external=external, exact=True
    )
    key = options.clean_key or _preferred(clean_path, CLEAN_KEY)
    clean = read_cube(
        clean_path, key=key, axes=options.clean_axes, size=options.clean_size, allow_external=external, exact=True
    )
    # The clean cube that the denoised file itself carries, if it came from `corrupt` or a published noisy set.
    carried = _clean_of(denoised_path, denoised)
    if denoised.values.shape != clean.values.shape:
        hint = "choose the variables with --key and --clean-key"
        if carried is not None:
            hint = f"{denoised_path} holds its own clean cube: `hsidenoise evaluate {denoised_path} {denoised_path}`"
        raise ValueError(
            f"{denoised_path} is {_sizes(denoised)}, but {clean_path} is {_sizes(clean)}; was one cropped? {hint}"
        )
    left = scorable(denoised.values, clean.values)
    bands = np.flatnonzero(left.bands)
    ours, truth = denoised.values[bands], clean.values[bands]
    if carried is not None:
        carried = carried[bands][:, left.pixels]
    truth, lowest, data_range, rule = _common_scale(truth, left.pixels, clean, carried, options.data_range)
    spread = float(ours[:, left.pixels].std() / (truth[:, left.pixels].std() or 1.0))
    if not 0.05 < spread < 20:
        warnings.warn(
            f"the denoised values spread {spread:.2g} times as wide as the clean ones: are both in the same unit?",
            stacklevel=1,
        )
    protocol = PROTOCOLS[options.protocol]
    mask = None if left.pixels.all() else left.pixels
    scores = dataclasses.asdict(
        evaluate(ours, truth, data_range=data_range, protocol=options.protocol, lowest=lowest, mask=mask)
    )
    same: list[int] = []
    dark: list[int] = []
    floor = lowest or 0.0
    clip = (floor, floor + data_range) if protocol.clipped else None
    if not protocol.rows_as_bands:  # there, its scores are not of bands
        same, dark = _beyond_scores(ours, truth, left.pixels, clip, lowest is not None)
    infinite = [int(band) for band in bands[same]]
    undefined = [int(band) for band in bands[dark]]
    others = np.setdiff1d(np.arange(len(bands)), same)
    if infinite and len(others):  # of a cube that is the same as a whole, an infinite PSNR says it
        rest = evaluate(
            ours[others], truth[others], data_range=data_range, protocol=options.protocol, lowest=lowest, mask=mask
        )
        warnings.warn(
            f"the PSNR is infinite: both cubes are the same in {_bands(infinite)}; PSNR over the {len(others)} others "
            f"is {rest.psnr:.2f} dB",
            stacklevel=1,
        )
    if undefined:
        warnings.warn(f"the ERGAS is infinite: the clean mean is 0 in {_bands(undefined)}", stacklevel=1)
    names = {
        "denoised": f"{denoised_path} ({_variable(denoised)})",
        "clean": f"{clean_path} ({_variable(clean)})",
    }
    away = [int(band) for band in np.flatnonzero(~left.bands)]
    if options.json:
        # JSON has no word for the infinite PSNR of identical cubes
        finite = {name: None if score in (np.inf, -np.inf) else score for name, score in scores.items()}
        facts = {
            "data_range": data_range,
            "scaling": rule,
            "pixels_scored": int(left.pixels.sum()),
            "pixels": left.pixels.size,
            "bands_left_out": away,
            "not_data": list(left.reasons),
            "bands_of_infinite_psnr": infinite,
            "bands_of_infinite_ergas": undefined,
        }
        print(json.dumps({**finite, **facts, **names}, indent=2, allow_nan=False))
        return
    print(f"denoised  {names['denoised']}, {_sizes(denoised)}")
    print(f"clean     {names['clean']}")
    print(f"scaling   {rule}")
    for reason in left.reasons:
        print(f"no data   {reason}")
    if mask is not None or away:
        without = f", without band{'s' * (len(away) != 1)} {spans(away)}" if away else ""
        print(f"scored    {int(left.pixels.sum())} of {left.pixels.size} pixels{without}")
    print(f"protocol  {protocol.name} ({protocol.source})")
    print(
        f"PSNR {scores['psnr']:.2f} dB   SSIM {scores['ssim']:.4f}   SAM {scores['sam']:.4f} {protocol.sam_unit}   "
        f"ERGAS {scores['ergas']:.3f}"
    )


def _beyond_scores(
    denoised: np.ndarray, clean: np.ndarray, pixels: np.ndarray, clip: tuple[float, float] | None, stored: bool
) -> tuple[list[int], list[int]]:
    """Bands that are the same in both cubes (after the clip), and bands of clean mean 0 that are not (before it)."""
    same: list[int] = []
    dark: list[int] = []
    for index, (ours, truth) in enumerate(zip(denoised, clean, strict=True)):
        estimate, wanted = ours[pixels].astype(np.float64), truth[pixels].astype(np.float64)
        clipped = estimate if clip is None else estimate.clip(*clip)
        if np.array_equal(clipped, wanted):
            same.append(index)
        if wanted.mean() == 0 and not np.array_equal(estimate if stored else clipped, wanted):
            dark.append(index)
    return same, dark


def _single(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float32, copy=False)


def _bands(bands: list[int]) -> str:
    from hsidenoise.signal.mask import spans

    return f"band{'s' * (len(bands) != 1)} {spans(bands)} (0-based)"


def _facts(cube: Cube) -> dict[str, Any]:
    """What `inspect` says of the cube, JSON-able."""
    from hsidenoise.signal.mask import find_extremes
    from hsidenoise.signal.noise_level import bad_bands, noise_level

    bands, height, width = cube.values.shape
    low, high = float(cube.values.min()), float(cube.values.max())
    waves = cube.wavelengths
    noise = None
    if min(height, width) > 1:
        level = np.asarray(noise_level(cube.values), dtype=float)
        median = float(np.median(level))
        noise = {
            "per_band": [float(value) for value in level],
            "median": median,
            "median_share": median / ((high - low) or 1.0),
            "worst": float(level.max()),
            "worst_band": int(level.argmax()),
        }
    return {
        "variable": _variable(cube),
        "bands": bands,
        "height": height,
        "width": width,
        "axes": "" if cube.layout is None else cube.layout.axes,
        "reason": "" if cube.layout is None else cube.layout.reason,
        "range": [low, high],
        "not_data": [str(found) for found in find_extremes(cube.values).found],
        "wavelengths": None if waves is None else [float(waves[0]), float(waves[-1])],
        "noise": noise,
        "bad_bands": [] if noise is None else np.flatnonzero(bad_bands(cube.values)).tolist(),
    }


def _common_scale(
    truth: np.ndarray, pixels: np.ndarray, clean: Cube, carried: np.ndarray | None, data_range: float | None
) -> tuple[np.ndarray, float | None, float, str]:
    """The clean cube in the denoised one's unit, the ends of the range that PSNR and SSIM go by, and why."""
    if data_range is not None:
        return truth, None, data_range, f"none; data range {data_range:g} as given"
    valid = truth[:, pixels]
    low, high = float(valid.min()), float(valid.max())
    floats = clean.layout is None or np.issubdtype(clean.layout.dtype, np.floating)
    if floats and low >= 0 and high <= 1:
        return truth, None, 1.0, "none; clean values are floats in [0, 1], data range 1"
    if low == high:
        raise ValueError(f"{clean.path}: every clean value is {low:g}; say the range with --data-range")
    span = f"by the clean cube's range ({low:g} .. {high:g}) to (0 .. 1), data range 1"
    if carried is not None:
        scaled = (valid.astype(np.float64) - low) / (high - low)
        if np.allclose(carried, scaled, atol=1e-3):
            truth = (truth.astype(np.float64) - low) / (high - low)
            return truth, None, 1.0, f"clean {span}; the denoised cube was made from that"
    return truth, low, high - low, f"PSNR and SSIM {span}; SAM and ERGAS of the values as stored"


def _clean_of(source: Path, noisy: Cube) -> np.ndarray | None:
    """The clean cube that a file of `corrupt` or a published noisy set carries beside the noisy one."""
    if _variable(noisy) != NOISY_KEY or _preferred(source, CLEAN_KEY) is None:
        return None
    clean = read_cube(source, key=CLEAN_KEY, exact=True).values
    return clean if clean.shape == noisy.values.shape else None


def _preferred(path: Path, key: str) -> str | None:
    """The name of a published noisy set's variable, if the file has it."""
    if path.is_dir():
        return None
    return (
        key
        if any(item.name == key and item.is_number and len(item.shape) == 3 for item in list_variables(path))
        else None
    )


def _type(variable: Variable) -> str | None:
    return None if variable.dtype is None else str(variable.dtype)


def _variable(cube: Cube) -> str:
    return "cube" if cube.layout is None else printable(cube.layout.key)


def _sizes(cube: Cube) -> str:
    bands, height, width = cube.values.shape
    return f"{bands} bands of {height} x {width}"


def _print_read(path: Path, cube: Cube) -> None:
    dtype = "" if cube.layout is None else f" {cube.layout.dtype}"
    reason = "" if cube.layout is None else f"; axes {cube.layout.axes}: {cube.layout.reason}"
    print(f"read     {path}: {_variable(cube)},{dtype}, {_sizes(cube)}{reason}")


def _beside(source: Path) -> Path:
    """Where the denoised cube goes if the user names no file."""
    whole = source if source.name not in ("", "..") else source.resolve()
    return whole.with_name(f"{whole.name if whole.is_dir() else whole.stem}_denoised.mat")


def _check_picture(options: argparse.Namespace, source: Path, target: Path) -> None:
    """Refuse before computing what would fail after it."""
    path, band = options.picture, options.band
    if path:
        if Path(path).resolve() in (source.resolve(), target.resolve()):
            raise ValueError(f"{path}: is a cube of this command and would be lost; name another picture")
        if Path(path).suffix.lower() not in (".png", ".pdf", ".svg"):
            raise ValueError(f"{path}: name a picture .png, .pdf or .svg")
        check_target(path)
    if band is not None:
        if not path:
            raise ValueError("--band chooses the band of the picture; name one with --picture, or leave --band out")
        bands = len(
            read_cube(
                source, key=options.key, axes=options.axes, size=options.size, allow_external=options.allow_external
            ).values
        )
        if band >= bands:
            raise ValueError(f"--band {band}: {source} has bands 0 to {bands - 1}")

"""Folders of one PNG per band, as the CAVE database publishes its scenes.

References:
    Yasuma, Mitsunaga, Iso, Nayar, "Generalized Assorted Pixel Camera", IEEE TIP 19(9), 2010.
    doi:10.1109/TIP.2010.2046811. The database: https://www.cs.columbia.edu/CAVE/databases/multispectral/
"""

import itertools
import re
import struct
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import skimage.io
from jaxtyping import Shaped

from hsidenoise.data.formats.base import Format, NewCube, Part, RefusedError, Wavelengths, check_room
from hsidenoise.data.layout import Layout, Variable, printable
from hsidenoise.data.metadata import Metadata

#: Centre wavelengths of CAVE's 31 bands in nm.
CAVE_WAVELENGTHS = tuple(float(nm) for nm in range(400, 701, 10))
_MOST_PIXELS = 1 << 27  # of a band: Sentinel-2's tiles of 10980 x 10980 fit
_MOST_DEFLATED = 1032  # bytes in a byte of deflate
_BAND_FILE = re.compile(r"(?P<scene>.*?)_?(?P<number>\d+)\.png", re.IGNORECASE)


def find_bands(folder: Path, scene: str | None = None) -> tuple[str, list[Path]]:
    """Find the band images of a scene, in the order of their numbers.

    The folder itself is searched, else the one folder in it that holds band images (CAVE nests
    ``beads_ms/beads_ms/beads_ms_01.png``). Files that do not end in a number are left alone.

    Returns:
        The scene and its files.

    Raises:
        ValueError: If there is no scene, more than one, or a band is missing.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as root:
        ...     for number in (1, 2, 10, 3, 4, 5, 6, 7, 8, 9):
        ...         Path(root, f"beads_ms_{number}.png").touch()
        ...     scene, files = find_bands(Path(root))
        >>> scene, len(files), files[-1].name
        ('beads_ms', 10, 'beads_ms_10.png')
    """
    scenes = _scenes_in(folder)
    if scene is None and len(scenes) > 1:
        raise ValueError(
            f"{folder} holds several scenes ({', '.join(map(printable, sorted(scenes)))}); choose one with --key"
        )
    if scene is not None and scene not in scenes:
        raise ValueError(
            f"{folder} holds no scene '{printable(scene)}' but {', '.join(map(printable, sorted(scenes)))}"
        )
    scene = scene if scene is not None else next(iter(scenes))
    bands = scenes[scene]
    first = min(bands)
    missing = 1 if first > 1 else next(number for number in itertools.count(first) if number not in bands)
    if missing <= max(bands):
        raise ValueError(f"band {missing} of scene '{printable(scene)}' is missing in {folder}")
    return scene, [bands[number] for number in sorted(bands)]


def _scenes_in(folder: Path) -> dict[str, dict[int, Path]]:
    """The scenes of a folder, or of the one folder in it that has some: number to file."""
    places = {place: _scenes(place) for place in [folder, *sorted(filter(Path.is_dir, folder.iterdir()))]}
    places = {place: scenes for place, scenes in places.items() if scenes}
    if folder in places:
        places = {folder: places[folder]}
    if not places:
        raise ValueError(f"{folder} is a folder without band images (like scene_01.png); name a file or such a folder")
    if len(places) > 1:
        names = ", ".join(printable(place.name) for place in list(places)[:12])
        raise ValueError(f"{folder} holds several scenes ({names}); give the folder of one")
    return next(iter(places.values()))


def _scenes(folder: Path) -> dict[str, dict[int, Path]]:
    scenes: dict[str, dict[int, Path]] = {}
    for file in sorted(folder.iterdir()):
        match = _BAND_FILE.fullmatch(file.name)
        if match and not file.name.startswith(".") and file.is_file():  # ._scene_01.png is of macOS, no image
            scenes.setdefault(match["scene"], {})[int(match["number"])] = file
    return scenes


def load_bands(files: list[Path]) -> Shaped[np.ndarray, "bands height width"]:
    """Load band images as one array.

    Args:
        files: One PNG per band: 8 or 16-bit grey, or 8-bit colour whose channels are equal.

    Raises:
        ValueError: If a file is no such PNG or the sizes or types differ.

    Warns:
        UserWarning: If an alpha channel was dropped.
    """
    height, width, depth = _header(files[0])
    try:
        check_room(str(files[0].parent), (height, width, len(files)), np.dtype(np.uint16 if depth > 8 else np.uint8))
    except RefusedError as error:
        raise ValueError(str(error)) from error
    planes: list[np.ndarray] = []
    alpha = 0
    for file in files:
        plane, had_alpha = _load_band(file)
        alpha += had_alpha
        if planes and (plane.shape != planes[0].shape or plane.dtype != planes[0].dtype):
            raise ValueError(
                f"{file} is {plane.shape} {plane.dtype}, {files[0].name} is {planes[0].shape} {planes[0].dtype}; "
                "the bands of a cube must agree"
            )
        planes.append(plane)
    if alpha:
        warnings.warn(f"{files[0].parent}: alpha channel of {alpha} band images dropped", stacklevel=3)
    return np.stack(planes, axis=-1)


def _header(file: Path) -> tuple[int, int, int]:
    """Height, width and bit depth that a PNG promises, checked against its length."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        head = stream.read(26)
    if len(head) == 26 and head[:8] == b"\x89PNG\r\n\x1a\n" and head[12:16] == b"IHDR":
        width, height, depth, _ = struct.unpack(">IIBB", head[16:])
        if width * height * depth // 8 <= _MOST_DEFLATED * size:
            return height, width, depth
    raise ValueError(f"cannot read {file}: no PNG, truncated or damaged; copy or download it again")


def _load_band(file: Path) -> tuple[np.ndarray, bool]:
    height, width, depth = _header(file)
    if height * width > _MOST_PIXELS:
        raise ValueError(f"{file} has {height} x {width} pixels, more than a band may have ({_MOST_PIXELS:,}); cut it")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a large picture: its size is checked here
            plane = np.asarray(skimage.io.imread(file))
    except Exception as error:  # a damaged picture makes Pillow stumble over itself: AttributeError, SyntaxError, ...
        raise ValueError(f"cannot read {file}: no PNG, truncated or damaged; copy or download it again") from error
    if plane.ndim == 3 and depth == 16:  # the reader would silently keep only the upper 8 bits
        raise ValueError(f"{file} is a 16-bit colour PNG; save each band as 16-bit grey")
    alpha = plane.ndim == 3 and plane.shape[2] in (2, 4)
    if alpha:
        plane = plane[..., :-1]
    if plane.ndim == 3:
        if (plane != plane[..., :1]).any():
            raise ValueError(f"{file} is a colour picture; a band is grey")
        plane = plane[..., 0]
    if plane.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"{file} holds {plane.dtype}; a band is 8 or 16-bit grey")
    return plane, alpha


def save_bands(folder: Path, scene: str, cube: Shaped[np.ndarray, "bands height width"]) -> None:
    """Write band images ``<scene>_01.png``, ``<scene>_02.png``, ... as CAVE does.

    Raises:
        OSError: If a file cannot be written.
    """
    for number in range(1, cube.shape[2] + 1):
        name = f"{scene}_{number:02d}.png" if scene else f"{number:02d}.png"
        skimage.io.imsave(folder / name, np.ascontiguousarray(cube[..., number - 1]), check_contrast=False)


class _Png(Format):
    name, kinds, suffixes, folder = "PNG folder", ("png",), (), True
    types = frozenset({"u1", "u2"})

    def recognises(self, path: Path) -> bool:
        return path.is_dir()

    def is_named(self, path: Path) -> bool:
        # one PNG may be a preview; a cube has one per band
        return path.is_dir() and sum(1 for _ in path.glob("[!.]*.[pP][nN][gG]")) > 1

    def list_variables(self, path: Path, *, allow_external: bool = False) -> list[Variable]:
        found = []
        for scene in _scenes_in(path):
            _, files = find_bands(path, scene)
            first = load_bands(files[:1])
            shape = (*first.shape[:2], len(files))
            found.append(Variable(scene, shape, first.dtype, f"{len(files)} band images", axes="hwb"))
        return found

    def load_variable(
        self, path: Path, name: str, part: Part | None = None, *, allow_external: bool = False
    ) -> np.ndarray:
        _, files = find_bands(path, name)
        return load_bands(files) if part is None else load_bands(files[part[2]])[part[:2]]

    def read_metadata(
        self, path: Path, layout: Layout, variables: Sequence[Variable], *, allow_external: bool = False
    ) -> tuple[Wavelengths, Metadata]:
        return np.array(CAVE_WAVELENGTHS) if layout.bands == len(CAVE_WAVELENGTHS) else None, Metadata()

    def write_like(
        self, source: Path, targets: Sequence[Path], layout: Layout, stored: np.ndarray, suffix: str, record: str | None
    ) -> None:
        save_bands(targets[0], layout.key, stored)

    def write_new(self, targets: Sequence[Path], new: NewCube) -> None:
        save_bands(targets[0], new.name, new.values.transpose(1, 2, 0))


FORMAT = _Png()

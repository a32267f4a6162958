"""Inputs for tests/fuzz.py: small valid files of every kind that is read, and how they are damaged."""

from __future__ import annotations

import contextlib
import io
import json
import random
import struct
import tempfile
import warnings
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]

Files = dict[str, bytes]  # name in a folder -> content: what a reader is given


def _cube(dtype: str = "u2") -> Any:
    import numpy as np

    return np.random.default_rng(0).integers(0, 200, (6, 7, 5)).astype(dtype)


def _saved(content: dict[str, Any], form: str, packed: bool = False) -> Files:
    import scipy.io

    stream = io.BytesIO()
    scipy.io.savemat(stream, content, format=form, do_compression=packed)
    data = stream.getvalue()
    if form == "5":  # the header's text has the date
        data = b"MATLAB 5.0 MAT-file".ljust(116) + data[116:]
    return {"a.mat": data}


def _v4() -> list[Files]:
    import numpy as np
    import scipy.sparse

    matrix = _cube("f8").reshape(42, 5).T
    size = {"height": np.float64(6), "width": np.float64(7)}
    big = np.arange(36.0).reshape(4, 9)
    foreign = struct.pack(">5i", 1000, 4, 9, 0, 2) + b"X\0" + big.T.astype(">f8").tobytes()
    return [
        _saved({"HSI": matrix, **size}, "4"),
        _saved({"Y": matrix.astype("i2")[:, :36], "name": "text", "z": np.eye(2) * 1j}, "4"),
        _saved({"s": scipy.sparse.csc_matrix(np.eye(3)), "X": matrix.astype("f4")[:, :25]}, "4"),
        {"a.mat": foreign},
    ]


def _v5() -> list[Files]:
    import numpy as np
    import scipy.sparse

    waves = np.linspace(400, 700, 5)[None]
    others = {
        "info": {"name": "a", "sizes": np.array([6.0, 7, 5])},
        "cells": np.array(["a", np.eye(2)], dtype=object),
        "flag": np.array([[True, False]]),
        "sparse": scipy.sparse.csc_matrix(np.eye(3)),
    }
    return [
        _saved({"cube": _cube(), "wavelength": waves}, "5"),
        _saved({"cube": _cube("f8"), "wavelength": waves, **others}, "5", packed=True),
        _saved({"input": _cube("f4"), "gt": _cube("f4"), "sigma": np.array([[30.0]])}, "5", packed=True),
        _saved({**others, "x": _cube("i1")}, "5"),
        _saved({"Y": _cube("i4").reshape(42, 5).T, "nrow": 6.0, "ncol": 7.0}, "5"),
        _saved({"z": _cube("c8"), "u": _cube("u8")}, "5"),
    ]


def _v73() -> list[Files]:
    import h5py
    import numpy as np

    def make(fill: Callable[[Any], None], **options: Any) -> Files:
        stream = io.BytesIO()
        with h5py.File(stream, "w", **options) as file:
            fill(file)
        return {"a.mat": stream.getvalue()}

    cube = _cube("f4").T

    def matlab(file: Any) -> None:
        data = file.create_dataset("rad", data=cube, chunks=(2, 7, 6), compression="gzip", shuffle=True)
        data.attrs["MATLAB_class"] = np.bytes_("single")
        waves = file.create_dataset("bands", data=np.linspace(400, 700, 5)[:, None])
        waves.attrs["MATLAB_class"] = np.bytes_("double")

    def plain(file: Any) -> None:
        file.create_dataset("data/cube", data=_cube(), chunks=(3, 4, 5), fletcher32=True)
        file.create_dataset("data/wavelength", data=np.linspace(0.4, 0.7, 5))
        file["again"] = h5py.SoftLink("/data")
        file["nowhere"] = h5py.SoftLink("/missing")
        file["outside"] = h5py.ExternalLink("other.mat", "/x")

    def cells(file: Any) -> None:
        refs = file.create_group("#refs#")
        refs["a"] = np.eye(2)
        pointers = file.create_dataset("cell", (1,), dtype=h5py.ref_dtype)
        pointers[0] = refs["a"].ref
        pointers.attrs["MATLAB_class"] = np.bytes_("cell")
        file.create_group("s").attrs["MATLAB_class"] = np.bytes_("struct")
        empty = file.create_dataset("none", data=np.array([0, 3], "u8"))
        empty.attrs.update({"MATLAB_class": np.bytes_("double"), "MATLAB_empty": np.uint8(1)})
        file.create_dataset("text", data="some text")
        file.create_dataset("rows", (2,), dtype=h5py.vlen_dtype("f8"))
        file.create_dataset("z", data=_cube("c8"))
        file.create_dataset("cube", data=_cube("i2"), scaleoffset=0, chunks=(3, 7, 5))

    def small(file: Any) -> None:
        file.create_dataset("cube", data=_cube("u1"), maxshape=(None, 7, None), chunks=(2, 7, 5))

    def graph(file: Any) -> None:  # 28 groups, 2^28 paths
        group = file.create_group("a")
        for _ in range(28):
            inner = group.create_group("a")
            group["b"], group = inner, inner
        group["cube"] = _cube()

    def promised(file: Any) -> None:  # 11.7 GiB in 2 kB
        file.create_dataset("cube", (1500, 1500, 1400), "f4", chunks=(100, 100, 100))

    def elsewhere(file: Any) -> None:
        file.create_dataset("cube", (6, 7, 5), "u1", external=[("/etc/passwd", 0, 210)])

    def virtual(file: Any) -> None:
        file["x"] = _cube()[:3]
        options = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        options.set_obj_track_times(False)  # h5py leaves the date out of all others
        whole, part = (h5py.h5s.create_simple((bands, 7, 5)) for bands in (6, 3))
        for start, name in ((0, b"."), (3, b"/no/such")):
            whole.select_hyperslab((start, 0, 0), (3, 7, 5))
            options.set_virtual(whole, name, b"/x", part)
        h5py.h5d.create(file.id, b"cube", h5py.h5t.STD_U16LE, whole, options)

    return [
        make(matlab, userblock_size=512),
        make(plain),
        make(cells),
        make(small, libver="latest"),
        make(lambda file: file.create_dataset("cube", data=_cube("f8"))),
        *(make(fill) for fill in (graph, promised, elsewhere, virtual)),
    ]


def _png() -> list[Files]:
    import numpy as np
    from PIL import Image

    def encode(image: Any, **options: Any) -> bytes:
        stream = io.BytesIO()
        Image.fromarray(image).save(stream, "png", **options)
        return stream.getvalue()

    cube = _cube("u1")[:, :, :3]
    grey = [np.ascontiguousarray(cube[..., band]) for band in range(3)]
    wide = [band.astype("u2") * 300 for band in grey]
    colour = [np.repeat(band[..., None], 3, axis=2) for band in grey]
    alpha = [np.dstack([band, np.full_like(band, 255)]) for band in grey]
    folders = [[encode(band) for band in bands] for bands in (grey, wide, colour, alpha)]
    folders.append([encode((band > 99).astype("u1") * 255, bits=1) for band in grey])
    named = [{f"s_{number:02d}.png": data for number, data in enumerate(bands, 1)} for bands in folders]
    dated = {**named[0], "s_20240131123456.png": folders[0][0]}  # nobody should count up to that
    return [*named, {f"s_ms/{name}": data for name, data in named[0].items()}, dated]


def _written(*suffixes: str) -> Callable[[], list[Files]]:
    """The files that a cube in a format consists of."""

    def make() -> list[Files]:
        import numpy as np

        from hsidenoise.data.io import Cube, write_cube
        from hsidenoise.data.metadata import Metadata

        about = Metadata(np.full(5, 9.0), tuple("abcde"), np.ones(5, bool), 0.0, None, (2.0, 0.0, 9.0, 0.0, -2.0, 9.0))
        cube = Cube(_cube("f4").transpose(2, 0, 1), np.linspace(400.0, 800, 5), None, None, about)
        found = []
        for suffix in suffixes:
            with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
                warnings.simplefilter("ignore")
                write_cube(Path(name, f"a{suffix}"), cube)
                root = Path(name, "a.zarr") if suffix == ".zarr" else Path(name)
                files = {str(file.relative_to(root)): file.read_bytes() for file in root.rglob("*") if file.is_file()}
                found.append(dict(sorted(files.items())))
        return found

    return make


def _mutate_header(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """A line of an ENVI header: a number, its name, that it is there, how often."""
    if not data.startswith(b"ENVI"):
        return _mutate_bytes(rng, data, other)
    lines = data.decode("utf-8", "replace").splitlines()
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(lines))
        name, _, value = lines[at].partition(" = ")
        strange = (
            "-1",
            "",
            "{",
            "}",
            "9" * 40,
            "1e9",
            "nan",
            "{1, 2}",
            "{" + "1," * 9000,
            "\0",
            "5",
            f"{value}}}",
            "xyz",
        )
        lines[at : at + 1] = rng.choice(
            ([], [f"{name} = {rng.choice(strange)}"], [lines[at]] * 2, [f"{value} = {name}"])
        )
        if not lines:
            break
    return "\n".join(lines).encode("utf-8", "replace")


def _header(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and tensors of a safetensors file."""
    (count,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + count]), data[8 + count :]


def _weights() -> list[Files]:
    import torch

    from hsidenoise.models import create_model
    from hsidenoise.models.weights import save_weights

    found = []
    for name, options, metadata in (
        ("hcanet-bra", {"heads": [1, 1, 1]}, {"tile": "32", "passes": "2", "training_scenes": '["beads"]'}),
        ("hcanet-bra", {"heads": [1, 2, 2], "attention": "channel"}, {"seed": "0", "data": "folder: beads, cd"}),
        ("hcanet", {"heads": [1, 1, 1]}, {"noise": "blind", "validation": "superballs"}),
    ):
        with torch.random.fork_rng(devices=[]), tempfile.TemporaryDirectory() as folder:
            torch.manual_seed(0)
            usual = {"planes": 3, "num_blocks": [1, 0, 0]} if "bra" in name else {"bands": 3, "num_blocks": [1, 1, 1]}
            network = create_model(name, dim=4, **usual, **options)
            save_weights(Path(folder, "a"), network, name=name, metadata=metadata)
            header, body = _header(Path(folder, "a").read_bytes())
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))  # written in the order of a random hash
        text = json.dumps(header).encode()
        found.append({"a.safetensors": struct.pack("<Q", len(text)) + text + body})
    return found


def _tables() -> list[Files]:
    return [{"a.yaml": path.read_bytes()} for path in sorted((ROOT / "configs/tables").glob("*.yaml"))]


def _trainings() -> list[Files]:
    return [{"a.yaml": path.read_bytes()} for path in sorted((ROOT / "configs").glob("*.yaml"))]


NUMBERS = (0, 1, -1, 127, 255, 32767, 65535, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1)


def _mutate_bytes(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """One to some changes of bytes, half of them near the beginning, where the headers are."""
    changed = bytearray(data)
    for _ in range(min(1 + int(rng.expovariate(0.7)), 12)):
        size = len(changed)
        if not size:
            break
        at = rng.randrange(min(size, 600) if rng.random() < 0.5 else size)
        for _ in range(4):  # most of a small HDF5 file is empty
            at = at if changed[at] else rng.randrange(size)
        length = min(1 + int(rng.expovariate(0.1)), size)
        kind = rng.randrange(10)
        if kind == 0:
            changed[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            changed[at] = rng.randrange(256)
        elif kind == 2:
            changed[at:at] = rng.randbytes(length)
        elif kind == 3:
            del changed[at : at + length]
        elif kind == 4 and rng.random() < 0.3:
            del changed[at:]
        elif kind == 5:
            start = rng.randrange(size)
            changed[at : at + length * rng.randrange(2)] = changed[start : start + length]
        elif kind == 6 and rng.random() < 0.3:
            changed[at:] = other[rng.randrange(len(other) + 1) :]
        elif kind == 7:
            changed[at : at + length] = bytes([rng.choice((0, 255, 127, 32))]) * length
        else:
            width = rng.choice((1, 2, 4, 8))
            at -= at % width if rng.random() < 0.7 else 0
            order = rng.choice(("little", "big"))
            number = rng.choice(NUMBERS)
            if rng.random() < 0.3:
                number = int.from_bytes(changed[at : at + width], order) + rng.choice((-1, 1, 8, -8))
            changed[at : at + width] = (number % (1 << 8 * width)).to_bytes(width, order)
    return bytes(changed)


def _mutate_v5(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """Bytes of what is compressed: a change behind the compression fails at its checksum."""
    parts, start = [data[:128]], 128
    while start + 8 <= len(data):
        kind, count = struct.unpack_from("<II", data, start)
        body, start = data[start + 8 : start + 8 + count], start + 8 + count
        if kind == 15 and rng.random() < 0.6:
            body = zlib.compress(_mutate_bytes(rng, zlib.decompress(body), other), 1)
        parts += [struct.pack("<II", kind, len(body)), body]
    return b"".join(parts)


def _mutate_png(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """Bytes of what chunks hold, their checksums made right."""
    chunks, start = [], 8
    while start + 12 <= len(data):
        (count,) = struct.unpack_from(">I", data, start)
        chunks.append((data[start + 4 : start + 8], data[start + 8 : start + 8 + count]))
        start += 12 + count
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(chunks))
        name, body = chunks[at]
        if name == b"IHDR" and rng.random() < 0.7:
            fields = list(struct.unpack(">IIBBBBB", body.ljust(13, b"\0")[:13]))
            field = rng.randrange(7)
            fields[field] = (
                rng.choice((0, 1, 3, 8, 16, 20000, 2**31 - 1, 2**32 - 1))
                if field < 2
                else rng.choice((0, 1, 2, 3, 4, 6, 8, 16, 255))
            )
            body = struct.pack(">IIBBBBB", *fields)
        elif name == b"IDAT" and rng.random() < 0.7:
            with contextlib.suppress(zlib.error):
                body = zlib.compress(_mutate_bytes(rng, zlib.decompress(body), other))
        elif rng.random() < 0.3:
            name = rng.choice(
                (b"PLTE", b"tRNS", b"iCCP", b"zTXt", b"iTXt", b"eXIf", b"acTL", b"fcTL", b"fdAT", b"IEND")
            )
            bomb = b"a\0\0" + zlib.compress(bytes(1 << 20))
            body = rng.choice((b"", rng.randbytes(30), bomb, bomb[1:], struct.pack(">II", 2**31 - 1, 1)))
        else:
            body = _mutate_bytes(rng, body, other)
        chunks[at : at + rng.randrange(2)] = [(name, body)]
    made = [data[:8]]
    for name, body in chunks:
        made += [struct.pack(">I", len(body)), name, body, struct.pack(">I", zlib.crc32(name + body))]
    return b"".join(made)


def _values(rng: random.Random) -> Any:
    """A value where another one is expected."""
    nested: Any = []
    for _ in range(rng.choice((2, 60))):
        nested = [nested]
    many: list[Any] = [1] * 3000
    return rng.choice(
        [
            *NUMBERS, 10**30, -(2**63) - 1, 20000, 1e9, 1e308, 0.5, float("nan"), float("inf"), -float("inf"), True,
            False, None, "", " ", "x", "0", "-1", "1e9", "nan", "é\0\x1b[31m", "x" * 10000, "1" * 5000, "../../etc", [],
            {}, [[]], [None], ["a", "a"], {"a": {"b": [1]}}, {"": None}, many, nested, "hcanet", "standard", "blind",
            "weights:hcanet", "os:system", "none", "auto", "wiener",
        ]
    )  # fmt: skip


def _mutate_tree(rng: random.Random, tree: Any) -> Any:
    """Change one place of what JSON or YAML says: its value, its key, that it is there, how often."""
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        for key in node if isinstance(node, dict) else range(len(node)):
            places.append((node, key))
            if isinstance(node[key], dict | list):
                walk(node[key])

    if not isinstance(tree, dict | list) or rng.random() < 0.01:
        return _values(rng)
    walk(tree)
    if not places:
        return _values(rng)
    node, key = rng.choice(places)
    kind = rng.randrange(8)
    if kind == 0:
        del node[key]
    elif kind == 1 and isinstance(node, dict):
        node[str(rng.choice(("", "x", *(k for _, k in places))))] = node.pop(key)
    elif kind == 2 and isinstance(node, list):
        node[key:key] = [node[key]] * rng.choice((1, 1, 40))
    elif kind == 3:
        other, name = rng.choice(places)
        with contextlib.suppress(LookupError):
            node[key] = json.loads(json.dumps(other[name], default=str))
    elif kind == 4:
        node[key] = rng.choice(([node[key]], {"a": node[key]}, str(node[key])))
    elif kind == 5 and type(node[key]) in (int, float):
        node[key] = rng.choice((-node[key], node[key] * 1000, node[key] + 1, float(node[key]), str(node[key])))
    else:
        node[key] = _values(rng)
    return tree


def _mutate_weights(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """The header, as the JSON that it is, and the JSON in it."""
    header, body = _header(data)
    saved = header["__metadata__"]
    for _ in range(rng.randint(1, 2)):
        kind = rng.randrange(8)
        if kind <= 3:
            config = json.dumps(_mutate_tree(rng, json.loads(saved["config"])))
            if rng.random() < 0.1:
                at = rng.randrange(len(config))
                config = (
                    config[:at] + rng.choice(("[" * 3000, '{"a":' * 3000, "1" * 5000, "NaN", ",", "]")) + config[at:]
                )
            header["__metadata__"] = {**saved, "config": config}
        elif kind <= 5:
            name = rng.choice(
                ("tile", "pilot_rounds", "training_scenes", "validation_scenes", "data", "model", "format")
            )
            value = rng.choice(
                (_values(rng), "[" * 3000, "[1, {}]", "{}", "hcanet", "hcanet-bra", "\u0663", "3.0", "1_0")
            )
            header["__metadata__"] = {**saved, name: value if isinstance(value, str) else json.dumps(value)}
        elif kind == 6:
            header = _mutate_tree(rng, header)
            break
        else:
            name = rng.choice([key for key in header if key != "__metadata__"])
            header[name] = _mutate_tree(rng, header[name])
    text = json.dumps(header).encode()
    if rng.random() < 0.1:
        text = _mutate_bytes(rng, text, other)
    return (
        struct.pack("<Q", len(text) + (rng.choice((1, -1, 2**40)) if rng.random() < 0.02 else 0) % 2**64) + text + body
    )


SNIPPETS = (
    "!!bool x", "!!int x", "!!float x", "!!null x", "!!timestamp x", "!!binary x", "!!set {a, b}", "!!omap [a: 1]",
    "!!pairs [a: 1]", "!!python/object/apply:os.getcwd []", "!!python/name:os.system", "!none x", "!!str {a: b}",
    "!!seq x", "!!map [a]", "!!int ''", "!!bool []", "!!float []", "!!int 1:99999", "!!int 0b", "!!int 0x", "!!int _",
    "2024-99-99", "2024-02-30 25:61:61", "0001-01-01 00:00:00 +23:59", "1:2:3:4:5:6:7:8", "0o777", "0b2", "1__0", ".",
    "+.inf", "&a [*a, *a]", "&a {x: *a}", "*unknown", "? {a: 1} : 2", "{[1]: 2}", "{<<: 1}", "{<<: [1, {a: 2}]}",
    "<<: *x", "[" * 400, "[" * 5000, "{a: " * 400, "- " * 3000, "? " * 3000, "'", '"', "|", ">-", "%YAML 9.9", "---",
    "...", "@", "`", "\t", "\ufeff", "\u2028", "\x85", '"\\ud800"', '"\\U00110000"', "\0", "1" * 5000,
    "1e" + "9" * 400, "0x" + "f" * 4000, "[&b [&c [x, x], *c, *c], *b, *b]", "1." + "0" * 5000,
    "9" * 400 + ":" + "9" * 400,
)  # fmt: skip
_BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]\n" for level in range(1, 12)
)


def _mutate_yaml(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """What it says, or the text of one value, key or line."""
    import yaml

    kind = rng.randrange(6)
    if kind <= 2:
        tree = yaml.safe_load(data)
        for _ in range(rng.randint(1, 3)):
            tree = _mutate_tree(rng, tree)
        flow = rng.choice((None, True, False))
        return yaml.safe_dump(tree, default_flow_style=flow, allow_unicode=rng.random() < 0.5, sort_keys=False).encode()
    lines = data.decode().splitlines()
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(lines))
        snippet = rng.choice(SNIPPETS)
        name, colon, value = lines[at].partition(": ")
        what = rng.randrange(7)
        if what == 0 and colon:
            lines[at] = f"{name}: {snippet}"
        elif what == 1 and colon:
            lines[at] = f"{name}: {snippet} {value}"
        elif what == 2:
            lines[at] = f"{snippet}: {value}"
        elif what == 3:
            lines.insert(at, " " * rng.randrange(5) + snippet)
        elif what == 4:
            words = lines[at].split(" ")
            words[rng.randrange(len(words))] = snippet
            lines[at] = " ".join(words)
        elif what == 5 and rng.random() < 0.2:
            name = name.strip() or "x"
            lines = [*_BOMB.splitlines(), *lines, f"{name}: *a{rng.choice((2, 5, 9, 11))}"]
        else:
            lines[at : at + 1] = rng.choice(([], [lines[at]] * 2, lines[at : at + 5][::-1]))
    return ("\n".join(lines) + "\n").encode("utf-8", "surrogatepass")


def _mutate_names(rng: random.Random, files: Files) -> Files:
    name = rng.choice(list(files))
    stem, number = name.removesuffix(".png").rsplit("_", 1)
    number = rng.choice(
        (number + "9" * rng.choice((1, 3, 14, 180)), "0", "00", "\u0663", "\u00b2", "-1", "", "1e3", "x", "\x1b")
    )
    renamed = rng.choice((f"{stem}_{number}.png", f"{number}.png", f"other_{number}.PNG"))
    return {renamed if key == name else key: value for key, value in files.items()}


INPUTS: dict[str, tuple[Callable[[], list[Files]], Callable[..., bytes] | None]] = {
    "v4": (_v4, None),
    "v5": (_v5, _mutate_v5),
    "v73": (_v73, None),
    "png": (_png, _mutate_png),
    "npy": (_written(".npy", ".npz"), None),
    "envi": (_written(".hdr", ".bil"), _mutate_header),
    "tiff": (_written(".tif"), None),
    "netcdf": (_written(".nc", ".h5"), None),
    "zarr": (_written(".zarr"), None),
    "weights": (_weights, _mutate_weights),
    "table": (_tables, _mutate_yaml),
    "train": (_trainings, _mutate_yaml),
}


def mutated(reader: str, seed: int) -> Files:
    """The input of one number: the same in every run."""
    rng = random.Random(f"{reader} {seed}")
    seeds = seeds_of(reader)
    files, other = dict(rng.choice(seeds)), rng.choice(seeds)
    if seed < len(seeds):
        return dict(seeds[seed])  # as they are: a reader that refuses these refuses everything
    if reader == "png" and rng.random() < 0.1:
        return _mutate_names(rng, files)
    name = rng.choice(list(files))
    inside = INPUTS[reader][1]
    content, strange = files[name], next(iter(other.values()))
    changes = rng.choice(([inside], [inside], [_mutate_bytes], [inside, _mutate_bytes])) if inside else [_mutate_bytes]
    for change in changes:
        with contextlib.suppress(struct.error, zlib.error):  # the first change has left nothing for the second
            content = change(rng, content, strange)
    files[name] = content
    return files


@cache
def seeds_of(reader: str) -> list[Files]:
    """The valid inputs of a reader."""
    return INPUTS[reader][0]()

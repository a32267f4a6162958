"""The options of the command line, verb by verb; nothing heavy is imported here."""

from __future__ import annotations

import argparse
import sys
from typing import NoReturn

from hsidenoise import __version__

# Options offered by --help without importing torch; a test holds them equal to the tables they repeat.
PROTOCOLS = ("standard", "qrnn3d", "hsir", "sert", "t3sc", "mafnet")
NORMALIZE = ("auto", "none", "minmax")
PRECISIONS = ("float32", "bfloat16", "auto")
ENSEMBLES = (1, 2, 4, 8)
DEFAULT_WEIGHTS = "hcanet-bra"
DATASETS = ("icvl", "cave", "folder")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Say what is wrong in one line, as every other error of this program."""
        print(f"hsidenoise: error: {message} (see `{self.prog} --help`)", file=sys.stderr)
        raise SystemExit(2)


class _ListNoise(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object, **__: object) -> None:
        from hsidenoise.noise.cases import NOISE_CASES

        for case in NOISE_CASES.values():
            print(f"{case.name:<18} {case.definition}  [{case.source}]")
        print(f"{'gaussian-<sigma>':<18} the same sigma on every band, 0-255 scale")
        print(f"{'gaussian-<a>-<b>':<18} one sigma per cube, uniform in [a, b]")
        parser.exit(0)


def _path(text: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError("an empty name; give that of a file or folder, or leave the option out")
    return text


def _size(text: str) -> tuple[int, int]:
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.isdigit() and int(part) > 0 for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size; write HEIGHTxWIDTH, such as 100x120")
    return int(parts[0]), int(parts[1])


def _count(text: str) -> int:
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above zero")
    return int(text)


def _natural(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above zero")
    return value


def make_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line.

    Each verb names the ``module`` and the function, ``verb``, that do its job.

    Example:
        >>> make_parser().parse_args(["weights"]).verb
        'weights'
    """
    parser = _Parser(
        prog="hsidenoise",
        description="Denoise hyperspectral cubes, measure the result, train networks for it.",
        epilog="`hsidenoise VERB --help` says more about a verb.",
    )
    parser.add_argument("--version", action="version", version=f"hsidenoise {__version__}")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True, parser_class=_Parser)

    def verb(name: str, text: str, more: str = "") -> argparse.ArgumentParser:
        sub = verbs.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}. {more}".strip())
        sub.set_defaults(module="hsidenoise.cli.verbs", verb=name, answers=name in ("inspect", "evaluate", "weights"))
        return sub

    def reading(sub: argparse.ArgumentParser, prefix: str = "", cube: str = "cube") -> None:
        sub.add_argument(f"--{prefix}key", metavar="NAME", help=f"variable that holds the {cube}")
        sub.add_argument(
            f"--{prefix}axes",
            metavar="AXES",
            type=str.lower,
            help="meaning of the variable's axes as MATLAB shows them: hwb, bhw, ... (height, width, bands), "
            "or bp / pb for a bands x pixels matrix",
        )
        sub.add_argument(f"--{prefix}size", type=_size, metavar="HxW", help="height and width of such a matrix")
        if not prefix:
            sub.add_argument(
                "--allow-external",
                action="store_true",
                help="read what a v7.3 file keeps in other files, which it may name at will (links, external storage, "
                "virtual data sets); refused if absent",
            )

    sub = verb(
        "denoise",
        "denoise a cube",
        "The output has the same variable name, axis order and dtype, and every other variable of the file.",
    )
    sub.add_argument("noisy", type=_path, help=".mat file (v5 or v7.3), or a folder of one PNG per band")
    sub.add_argument(
        "-o", "--output", type=_path, metavar="FILE", help="output; <noisy>_denoised.mat beside the input if absent"
    )
    reading(sub)
    sub.add_argument(
        "--weights",
        type=_path,
        metavar="NAME|FILE",
        help="shipped weights (see `hsidenoise weights`), a weights file, or an .onnx file of `hsidenoise export`",
    )
    sub.add_argument(
        "--tile", type=_count, metavar="N", help="side of a tile in pixels; by the cube's size and the memory if absent"
    )
    sub.add_argument("--overlap", type=_natural, metavar="N", help="overlap of neighbouring tiles in pixels")
    sub.add_argument("--batch", type=_count, metavar="N", help="tiles computed at a time; by the device if absent")
    sub.add_argument("--normalize", choices=NORMALIZE, default="auto", help="scaling of the values (default: auto)")
    sub.add_argument("--device", metavar="cpu|cuda", help="where to compute; a GPU if there is one")
    sub.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="float32",
        help="bfloat16 is faster where the hardware has it, off by 0.0004 of the range in the mean (PSNR by 0.01 dB); "
        "auto takes it there (default: float32)",
    )
    sub.add_argument(
        "--compile", action="store_true", help="compile the network first: minutes, hardly ever worth it on a CPU"
    )
    sub.add_argument(
        "--ensemble",
        type=_count,
        choices=ENSEMBLES,
        default=1,
        metavar="1|2|4|8",
        help="average that many mirrored passes: a little better, that many times slower (default: 1)",
    )
    sub.add_argument(
        "--no-join",
        dest="join",
        action="store_false",
        help="blend windows of bands without the last step across all bands, for cubes of more bands than the network",
    )
    sub.add_argument(
        "--pilot-rounds",
        type=_natural,
        metavar="N",
        help="rounds of the pilot filter, which takes the result as the pilot of a Wiener filter of the noisy cube; "
        "0: the network alone (default: what the network asks for, 1 for HCANet-BRA)",
    )
    sub.add_argument("--passes", type=_count, help=argparse.SUPPRESS)
    sub.add_argument("--picture", type=_path, metavar="FILE.png", help="also draw a before/after page")
    sub.add_argument(
        "--band", type=_natural, metavar="N", help="band shown on that picture, 0-based; the noisiest if absent"
    )

    sub = verb("inspect", "say what a file holds and how it would be read")
    sub.add_argument("cube", type=_path, help=".mat file or folder of PNG")
    reading(sub)
    sub.add_argument("--json", action="store_true", help="print JSON")

    sub = verb(
        "corrupt",
        "add synthetic noise to a clean cube",
        "Writes `input`, `gt` and `sigma` as the published ICVL noisy sets do: the clean cube scaled to [0, 1] by its "
        "own minimum and maximum, the noise not clipped.",
    )
    sub.add_argument("clean", type=_path, help=".mat file or folder of PNG")
    sub.add_argument("noisy", type=_path, help=".mat file to write")
    sub.add_argument("--noise", required=True, metavar="CASE", help="noise case; `hsidenoise corrupt --list` shows all")
    sub.add_argument("--seed", type=_natural, default=0, metavar="N", help="seed of the noise (default: 0)")
    sub.add_argument("--crop", type=_count, metavar="N", help="take the centre N x N pixels first")
    sub.add_argument("--no-minmax", dest="minmax", action="store_false", help="keep the values as they are")
    sub.add_argument("--list", action=_ListNoise, nargs=0, help="list the noise cases with their sources and stop")
    reading(sub)

    sub = verb(
        "make-noisy-set",
        "write a noisy set in the published layout",
        "TARGET gets a folder for each noise case, such as cave_512_30 or cave_512_noniid, with a file for each scene, "
        "equal to what `corrupt` writes. Started again after an interruption, it goes on where it stopped.",
    )
    sub.set_defaults(module="hsidenoise.cli.make_noisy_set", verb="make_noisy_set")
    sub.add_argument(
        "source", type=_path, metavar="SOURCE", help="folder of clean cubes (.mat files or folders of PNG)"
    )
    sub.add_argument("target", type=_path, metavar="TARGET", help="folder to write to; made if missing")
    sub.add_argument(
        "--cases", nargs="+", metavar="CASE", help="noise cases, as of `corrupt --list`; the published nine if absent"
    )
    sub.add_argument(
        "--crop", type=_natural, default=512, metavar="N", help="centre N x N pixels; 0 for whole scenes (default: 512)"
    )
    sub.add_argument("--seed", type=_natural, default=0, metavar="N", help="seed of the noise (default: 0)")
    sub.add_argument("--prefix", metavar="NAME", help="beginning of the folders' names; data set and crop if absent")
    sub.add_argument(
        "--dataset",
        choices=DATASETS,
        default="folder",
        help="folder: every cube in SOURCE; else the test scenes of a published split, at any depth (default: folder)",
    )
    sub.add_argument("--split", metavar="NAME", help="published split of that data set; its first if absent")
    sub.add_argument(
        "--missing", choices=("error", "skip"), default="error", help="what to do about scenes of it that are not there"
    )

    sub = verb(
        "evaluate",
        "measure a denoised cube against the clean one",
        "Of files that `corrupt` wrote, `input` is read on the denoised and `gt` on the clean side. Clean values that "
        "are not floats in [0, 1] are brought there by their range, and the denoised ones by the same scale.",
    )
    sub.add_argument(
        "denoised", type=_path, help=".mat file or folder of PNG; also a noisy cube, to know where it started"
    )
    sub.add_argument(
        "clean", type=_path, help=".mat file or folder of PNG; may be the same file, if that is of `corrupt`"
    )
    sub.add_argument("--protocol", choices=PROTOCOLS, default="standard", help="whose metrics (default: standard)")
    reading(sub, cube="denoised cube")
    reading(sub, "clean-", "clean cube")
    sub.add_argument("--data-range", type=_positive, metavar="X", help="range of clean values; nothing is scaled then")
    sub.add_argument("--json", action="store_true", help="print JSON")

    sub = verb(
        "benchmark",
        "make the table of a paper",
        "Methods x noise cases x scenes, as Markdown, CSV and LaTeX with figures. Finished cells are kept below --out, "
        "so that a run that was stopped goes on. A method package.module:function is code that is run: run only tables "
        "that you trust, or with --no-code.",
    )
    sub.set_defaults(module="hsidenoise.cli.benchmark", verb="tables")
    sub.add_argument(
        "--config",
        type=_path,
        required=True,
        metavar="FILE.yaml",
        help="table to make: configs/tables/*.yaml, or one of your own",
    )
    sub.add_argument("--data.root", dest="root", type=_path, metavar="FOLDER", help="folder of the cubes")
    sub.add_argument(
        "--methods",
        nargs="+",
        metavar="NAME",
        help="only these: labels of the table, or noisy, a baseline, weights:NAME|FILE, package.module:function",
    )
    sub.add_argument("--cases", nargs="+", metavar="CASE", help="only these noise cases, or others")
    sub.add_argument(
        "--protocol",
        dest="protocols",
        nargs="+",
        choices=PROTOCOLS,
        metavar="NAME",
        help=f"one or more of {', '.join(PROTOCOLS)}; by the table if absent",
    )
    sub.add_argument("--seed", type=_natural, metavar="N", help="seed of the noise")
    sub.add_argument("--out", type=_path, default="results", metavar="FOLDER", help="where to write (default: results)")
    sub.add_argument("--workers", type=_count, metavar="N", help="processes at a time; by cores and memory if absent")
    sub.add_argument("--device", metavar="cpu|cuda", help="where networks compute; a GPU if there is one")
    sub.add_argument(
        "--allow-leaks",
        action="store_true",
        help="show weights that were trained on a scene under test, marked and unranked, instead of refusing",
    )
    sub.add_argument("--fresh", action="store_true", help="compute finished cells again")
    sub.add_argument(
        "--no-code", action="store_true", help="refuse methods package.module:function, before anything is imported"
    )

    # `train` never reaches argparse (see main): LightningCLI has its own options and its own --help.
    verbs.add_parser("train", add_help=False, help="train a network (LightningCLI over one YAML per run)")

    sub = verb("weights", "list the weights that ship, what they were trained on and how good they are")
    sub.set_defaults(module="hsidenoise.cli.weights")
    sub.add_argument("--json", action="store_true", help="print JSON")

    sub = verb(
        "export",
        "write a network as an ONNX file for other programs",
        "The file takes cubes of any height, width and number at once, and is checked against PyTorch. It goes with "
        "`hsidenoise denoise --weights` too. Takes a minute or several.",
    )
    sub.set_defaults(module="hsidenoise.cli.weights")
    sub.add_argument(
        "--weights",
        type=_path,
        default=DEFAULT_WEIGHTS,
        metavar="NAME|FILE",
        help=f"shipped weights or a weights file (default: {DEFAULT_WEIGHTS})",
    )
    sub.add_argument("-o", "--output", type=_path, required=True, metavar="FILE.onnx", help="file to write")
    sub.add_argument("--opset", type=_count, metavar="N", help="ONNX operator set, 18 or later (default: 20)")
    return parser

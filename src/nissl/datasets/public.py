"""Public data sets by name: terms shown and accepted, then downloaded, checked and arranged into cases.

Their addresses and terms are in public.toml. Where the host states no checksum, the SHA-256 of the first download is
recorded in source.json and compared at every later one.
"""

import csv
import difflib
import gzip
import json
import re
import shutil
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timezone
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Num

from nissl.config import read_toml
from nissl.datasets.download import Progress, download, unpack
from nissl.errors import DataError, InputError
from nissl.files import file_digest, write_whole
from nissl.imageio.formats import GIB, read_raster, write_image, write_mask

RECORD, WORK = "source.json", ".work"


@dataclass(frozen=True)
class PublicDataset:
    """A data set that others publish: where it is, under which terms, and how its archive becomes cases."""

    name: str
    title: str
    page: str
    """Where the publisher describes it."""
    licence: str
    citation: str
    arrange: Callable[[Path, Path], None]
    """From the unpacked archive to a folder of cases."""
    url: str | None = None
    """Address of the archive; None where it must be fetched by hand."""
    checksum: str | None = None
    """`algorithm:digest` as the host of the address states it; None where it states none."""
    label_map: str = ""
    """What to give as `--label-map`."""
    note: str = ""
    """What a user should know."""
    unpacked_gib: float = 4.0
    """Bound on the unpacked size, in GiB."""

    def __str__(self) -> str:
        checksum = "none is published; the SHA-256 of the first download is recorded and compared later"
        return (
            f"{self.name}: {self.title}\npage: {self.page}\n"
            f"address: {self.url or 'fetched by hand from the page above, then given as an archive'}\n"
            f"licence: {self.licence}\ncite: {self.citation}\nchecksum: {self.checksum or checksum}\n"
            f"label map: {self.label_map or 'as found'}\nnote: {self.note or '-'}"
        )


def fetch(
    name: str,
    folder: Path,
    *,
    accept: Callable[[str], bool],
    archive: Path | None = None,
    progress: Progress | None = None,
) -> Path:
    """Download a data set and arrange it into cases in `folder`; a broken download continues where it stopped.

    Args:
        name: one of `PUBLIC`.
        folder: new, empty, or one in which this function was interrupted.
        accept: shown address, terms and citation, says whether the user agrees.
        archive: the archive as the user got it; nothing is downloaded then, and it is left as it is.
        progress: told bytes done and, where known, of how many.

    Raises:
        InputError: unknown name, terms not accepted, a folder in use, or no address to download from.
        DataError: the archive is not what it should be.
        ResourceError: the network or the disk failed; what was downloaded is kept.

    """
    if name not in PUBLIC:
        near = difflib.get_close_matches(name, PUBLIC, n=1)
        fix = f"did you mean `{near[0]}`?" if near else "choose one of these"
        raise InputError("name of the data set", f"`{name}`", f"one of {', '.join(PUBLIC)}", fix)
    dataset = PUBLIC[name]
    if _is_complete(dataset, folder):
        return folder
    if archive is None and dataset.url is None:
        fix = f"get it at {dataset.page} and give it with --archive FILE"
        raise InputError(name, "no address that can be downloaded from", "an archive", fix)
    if not accept(str(dataset)):
        raise InputError(name, "terms not accepted", "agreement", "nothing was downloaded; run it again to agree")
    unpacked, arranged = (folder / WORK / part for part in ("unpacked", "arranged"))
    (folder / WORK).mkdir(parents=True, exist_ok=True)
    source = archive or download(str(dataset.url), folder / WORK / "archive", dataset.page, progress)
    try:
        sha256 = _verify(dataset, source, _read_record(folder))
        for leftover in (unpacked, arranged):
            shutil.rmtree(leftover, ignore_errors=True)
        unpack(source, unpacked, dataset.unpacked_gib)
    except DataError:
        shutil.rmtree(folder / WORK)  # so that the next run does not meet it again
        raise
    arranged.mkdir()
    dataset.arrange(unpacked, arranged)
    _write_record(dataset, folder, sha256, complete=False)
    for part in sorted(arranged.iterdir()):  # all cases are made
        if not (folder / part.name).exists():  # it does after an interruption at this very place
            part.replace(folder / part.name)
    shutil.rmtree(folder / WORK)
    _write_record(dataset, folder, sha256, complete=True)
    return folder


def _is_complete(dataset: PublicDataset, folder: Path) -> bool:
    """Whether the data set is in the folder already; a folder with anything else is refused."""
    if not folder.exists():
        return False
    expected, fix = "a new or empty folder", "choose another folder"
    if not folder.is_dir():
        raise InputError(folder, "a file", expected, fix)
    record = _read_record(folder)
    data = sorted(path.name for path in folder.iterdir() if path.name not in (RECORD, WORK))
    if record and record.get("name") != dataset.name:
        raise InputError(folder, f"the data set {record.get('name')}", expected, fix)
    if data and not record:
        raise InputError(folder, f"a folder that holds {data[0]}", expected, fix)
    return bool(data and record["complete"])


def _read_record(folder: Path) -> dict[str, Any]:
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _write_record(dataset: PublicDataset, folder: Path, sha256: str, *, complete: bool) -> None:
    """Write beside the data where they come from, under which terms, and the checksum of the archive."""
    record = {key: value for key, value in vars(dataset).items() if key not in ("arrange", "unpacked_gib")} | {
        "sha256": sha256,
        "sha256_origin": f"the host states {dataset.checksum}" if dataset.checksum else "no checksum is published",
        "fetched": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "complete": complete,
    }
    write_whole(folder / RECORD, json.dumps(record, indent=2, ensure_ascii=False) + "\n")


def _verify(dataset: PublicDataset, source: Path, record: dict[str, Any]) -> str:
    """Compare an archive with the published checksum and with the one recorded before; its SHA-256."""
    algorithm, _, stated = (dataset.checksum or "").partition(":")
    try:
        sha256, found = file_digest(source), file_digest(source, algorithm=algorithm) if stated else ""
    except OSError as error:
        raise InputError(source, f"cannot be read: {error.strerror}", "an archive", "check the path") from error
    for kind, expected, got in (
        (f"the published {algorithm}", stated, found),
        ("the sha256 of the first download", record.get("sha256", sha256), sha256),
    ):
        if got != expected:
            raise DataError(source, f"checksum {got}", f"{kind}, {expected}", "get the archive again")
    return sha256


# Arrangement: from the layout of each archive to images/, masks/ and cases.csv


def _found(paths: Iterable[Path], folder: Path, expected: str) -> list[Path]:
    found = sorted(paths)
    if not found:
        top = ", ".join(sorted(path.name for path in folder.iterdir())[:5]) or "nothing"
        fix = "check that it is the archive of this data set"
        raise DataError(folder.parents[1], f"an archive with {top}", expected, fix)
    return found


def _make(target: Path) -> tuple[Path, Path]:
    (target / "images").mkdir()
    (target / "masks").mkdir()
    return target / "images", target / "masks"


def _write_cases(target: Path, rows: Iterable[tuple[str, str, str]]) -> None:
    lines = ["id,group,split", *(",".join(row) for row in rows)]
    write_whole(target / "cases.csv", "\n".join(lines) + "\n")


def arrange_glas(source: Path, target: Path) -> None:
    """GlaS: `train_1.bmp`, `train_1_anno.bmp` (gland instances), `Grade.csv` with the patient of each image."""
    pictures = _found(source.rglob("*.bmp"), source, "train_1.bmp, train_1_anno.bmp and the like")
    table = _found(source.rglob("Grade.csv"), source, "Grade.csv, the table of patients")[0]
    with table.open(encoding="utf-8-sig", newline="") as file:
        rows = [{key.strip(): value.strip() for key, value in row.items() if key} for row in csv.DictReader(file)]
    patients = {row["name"]: f"patient{row['patient ID']}" for row in rows}
    images, masks = _make(target)
    names = []
    for picture in pictures:
        if not picture.stem.endswith("_anno"):
            glands = read_raster(picture.with_name(f"{picture.stem}_anno.bmp")).pixels[0]
            write_mask(masks / f"{picture.stem}.png", glands)
            picture.rename(images / picture.name)
            names.append(picture.stem)
    sides = {name: "train" if name.startswith("train") else "test" for name in names}
    _write_cases(target, [(name, patients.get(name, ""), sides[name]) for name in names])


def arrange_dsb2018(source: Path, target: Path) -> None:
    """DSB2018: `ID/images/ID.png`, and one file for each nucleus in `ID/masks/`, merged into one label image."""
    pictures = _found(source.rglob("*/images/*.png"), source, "a folder ID/images/ID.png for each image")
    images, masks = _make(target)
    for picture in pictures:
        pixels = read_raster(picture).pixels
        labels = np.zeros(pixels.shape[1:], dtype=np.uint16)
        for number, nucleus in enumerate(sorted((picture.parents[1] / "masks").glob("*.png")), start=1):
            labels[read_raster(nucleus).pixels[0] > 0] = number
        write_mask(masks / picture.name, labels)
        write_image(images / picture.name, pixels if len(pixels) == 3 else np.repeat(pixels[:1], 3, axis=0))


def arrange_kvasir(source: Path, target: Path) -> None:
    """Kvasir-SEG: `images/ID.jpg` and `masks/ID.jpg`; JPEG blurs the edge of a mask, so that it is cut at half."""
    pictures = _found(source.rglob("images/*.jpg"), source, "images/ID.jpg and masks/ID.jpg")
    images, masks = _make(target)
    for picture in pictures:
        drawn = read_raster(picture.parents[1] / "masks" / picture.name).pixels.max(axis=0)
        write_mask(masks / f"{picture.stem}.png", (drawn > 127).astype(np.uint8))
        picture.rename(images / picture.name)


def arrange_decathlon(source: Path, target: Path) -> None:
    """Medical Segmentation Decathlon: `imagesTr`, `labelsTr` and `dataset.json` stay as they are."""
    table = _found(source.rglob("dataset.json"), source, "imagesTr, labelsTr and dataset.json")[0]
    for part in sorted(table.parent.iterdir()):
        part.rename(target / part.name)


def arrange_la2018(source: Path, target: Path) -> None:
    """Left atrium 2018: `Training Set/ID/lgemri.nrrd` and `laendo.nrrd`, the same in `Testing Set`."""
    pictures = _found(source.rglob("*/lgemri.nrrd"), source, "Training Set/ID/lgemri.nrrd and laendo.nrrd")
    images, masks = _make(target)
    rows = []
    for picture in pictures:
        name, side = picture.parent.name, "test" if "test" in picture.parents[1].name.lower() else "train"
        pixels, spacing = read_nrrd(picture)
        write_image(images / f"{name}.nii.gz", pixels[None], spacing)
        if (cavity := picture.with_name("laendo.nrrd")).exists():
            like = read_raster(images / f"{name}.nii.gz")
            write_mask(masks / f"{name}.nii.gz", (read_nrrd(cavity)[0] > 0).astype(np.uint8), like)
        rows.append((name, "", side))
    _write_cases(target, rows)


NRRD_TYPES = {
    **dict.fromkeys(("unsigned char", "uchar", "uint8", "uint8_t"), "u1"),
    **dict.fromkeys(("short", "int16", "int16_t", "signed short"), "i2"),
    **dict.fromkeys(("unsigned short", "ushort", "uint16", "uint16_t"), "u2"),
    "float": "f4",
}


def read_nrrd(path: Path, limit_gib: float = 1.0) -> tuple[Num[np.ndarray, "x y z"], tuple[float, ...]]:
    """Read a raw or gzip NRRD volume and its spacing in mm; the orientation is not read.

    Raises:
        DataError: another kind of NRRD, cut short, or larger than the limit.

    """
    with path.open("rb") as file:
        lines = list(iter(lambda: file.readline(4096).decode("latin-1").strip(), ""))
        field = dict(line.split(": ", 1) for line in lines if ": " in line)
        shape = [int(length) for length in field.get("sizes", "").split() if length.isdigit()]
        kind, encoding = NRRD_TYPES.get(field.get("type", "")), field.get("encoding")
        dtype = np.dtype(kind or "u1").newbyteorder(">" if field.get("endian") == "big" else "<")
        size = prod(shape) * dtype.itemsize
        usable = kind and len(shape) == 3 and encoding in ("raw", "gzip", "gz") and lines[0].startswith("NRRD")
        if not usable or size > limit_gib * GIB:
            found = f"type {field.get('type')}, encoding {encoding}, sizes {shape}"
            expected = f"NRRD with three axes of integers or float, raw or gzip, of at most {limit_gib:g} GiB"
            raise DataError(path, found, expected, "convert it to NIfTI with another tool, for example 3D Slicer")
        try:
            content = file.read(size) if encoding == "raw" else gzip.GzipFile(fileobj=file).read(size)
            pixels = np.frombuffer(content, dtype).reshape(shape, order="F").astype(dtype.newbyteorder("="))
        except (EOFError, OSError, ValueError, zlib.error) as error:
            raise DataError(path, f"cannot be decoded ({error})", "a whole file", "get it again") from error
    axes = re.findall(r"\(([^)]*)\)", field.get("space directions", ""))
    spacing = [float(np.linalg.norm([float(part) for part in axis.split(",")])) for axis in axes]
    return pixels, tuple(spacing or map(float, field.get("spacings", "1 1 1").split()))


ARRANGERS = {
    "glas": arrange_glas,
    "dsb2018": arrange_dsb2018,
    "kvasir-seg": arrange_kvasir,
    "msd-hippocampus": arrange_decathlon,
    "la2018": arrange_la2018,
}
PUBLIC = {
    name: PublicDataset(name=name, arrange=ARRANGERS[name], **entry)
    for name, entry in read_toml(Path(__file__).with_name("public.toml")).items()
}

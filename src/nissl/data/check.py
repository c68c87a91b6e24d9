"""Check a data set: every fault in one pass, each with its file and its fix."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Int

from nissl.config import DataConfig
from nissl.data.cases import CaseFile, Finding, Level, image_faults, pair_faults, read_image
from nissl.data.discovery import scan
from nissl.data.duplicates import FEW, digest, nearest, small_picture
from nissl.data.naming import DATA_FOLDER
from nissl.data.orientation import Place, differences, direction_of
from nissl.data.preprocessing import resolve
from nissl.data.resizing import Kept, kept, loss
from nissl.data.split import groups_on_sides, shared_fault, sides
from nissl.errors import DataError
from nissl.imageio.formats import Raster, read_raster
from nissl.imageio.label_map import LabelMap

ONE_SIDE = "keep one, or give them one group in cases.csv so that they stay on one side of the split"
ACCEPT = "; --allow-shared-images accepts them knowingly"
SMALLEST = 16
"""Pixels along an axis below which the default U-Net has nothing left at its lowest level."""


@dataclass(frozen=True)
class Accepted:
    """Faults of a split that the user takes knowingly: they become warnings."""

    shared_groups: bool = False
    """Patients on both sides of the split."""
    shared_images: bool = False
    """The same image on both sides of the split."""


@dataclass(frozen=True)
class Report:
    """What `check` found, and the facts of the set: plain values, ready for JSON."""

    findings: tuple[Finding, ...]
    facts: dict[str, Any]

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The findings that must be fixed before training."""
        return tuple(finding for finding in self.findings if finding.level == "error")


@dataclass
class _Observation:
    """What one case showed when its files were read; None where they could not be."""

    file: CaseFile
    findings: list[Finding] = field(default_factory=list)
    shape: tuple[int, ...] | None = None
    dtype: str = ""
    channels: int = 0
    digest: bytes = b""
    picture: Float32[np.ndarray, "values"] | None = None
    pixels_of_class: Int[np.ndarray, "classes"] | None = None
    kept: Kept | None = None
    place: Place | None = None


def check(
    root: Path,
    config: DataConfig,
    progress: Callable[[int, int], None] | None = None,
    accepted: Accepted = Accepted(),
) -> Report:
    """Read every file of a data set once and list all its faults; none of them stops the pass.

    `progress` is called after each case with the number done and the number of cases.

    Raises:
        InputError: the folder holds no data set at all, or the label map cannot be read.

    """
    scanned = scan(root, config)
    findings, observations = list(scanned.findings), []
    for done, file in enumerate(scanned.cases, start=1):
        observations.append(_observe(file, scanned.label_map, config))
        findings += observations[-1].findings
        if progress:
            progress(done, len(scanned.cases))
    findings += _odd_ones(observations)
    findings += _duplicates(observations, accepted)
    place = DATA_FOLDER if scanned.private else str(root)
    findings += _near_copies(observations, place)
    findings += _class_faults(observations, scanned.label_map, place)
    parted = [[case for case in scanned.cases if (case.split == "test") is test] for test in (False, True)]
    groups, shared = groups_on_sides(*parted)
    if shared:
        findings.append(Finding.of(shared_fault(shared, groups), "warning" if accepted.shared_groups else "error"))
    places = {seen.file.id: seen.place for seen in observations if seen.place}
    lost = loss(seen.kept for seen in observations)
    findings += [Finding("warning", place, *words) for words in (*differences(places), *lost)]
    return Report(tuple(findings), {"layout": scanned.layout} | _facts(observations, scanned.label_map))


def _observe(file: CaseFile, label_map: LabelMap, config: DataConfig) -> _Observation:
    """Read one case and note all that is wrong with it."""
    seen = _Observation(file)
    image = mask = None
    with _noted(seen.findings):
        image = read_image(file.image, config, file.alias)
    if file.target:
        with _noted(seen.findings):
            mask = read_raster(file.target, config.limit_gib, file.target_alias, config.axes)
    if image:
        seen.shape, seen.dtype = image.pixels.shape[1:], image.pixels.dtype.name
        seen.channels = len(image.pixels)
        seen.digest, seen.picture = digest(image.pixels), small_picture(image.pixels)
        seen.findings += _image_findings(file, image)
        if _settled(config, image.pixels.ndim - 1).sampling == "patches":
            seen.place = image.spacing, direction_of(image.affine)
    if image and mask:
        seen.findings += pair_faults(file, image, mask)
    if mask and file.target:
        with _noted(seen.findings):
            labels = label_map.apply(mask, file.target, file.target_alias)
            seen.pixels_of_class = np.bincount(labels.ravel(), minlength=len(label_map.names))
            if (settled := _settled(config, labels.ndim)).sampling == "resize":
                seen.kept = kept(labels, settled.size)
    return seen


def _settled(config: DataConfig, dims: int) -> DataConfig:
    """Sampling and size for a file of so many axes, which need not be those of the set."""
    return resolve(config if len(config.size) in (1, dims) else replace(config, size=()), dims)


@contextmanager
def _noted(findings: list[Finding]) -> Iterator[None]:
    """Add a fault of a file to the findings, rather than stop there."""
    try:
        yield
    except DataError as error:
        findings.append(Finding.of(error))


def _image_findings(file: CaseFile, image: Raster) -> Iterator[Finding]:
    where, pixels = file.image_name, image.pixels
    yield from image_faults(file, image)
    if image.burned_in:
        fix = "inspect it, and crop or blank the text before you share anything made of it"
        found = "text in its pixels, as the file says (BurnedInAnnotation is YES)"
        yield Finding("warning", where, found, "pixels without names and dates", fix)
    if pixels.size and pixels.min() == pixels.max():
        found = f"a constant image (every value is {pixels.flat[0]})"
        yield Finding("warning", where, found, "an image with structure", "remove it, unless an empty field is meant")
    if min(pixels.shape[1:]) < SMALLEST:
        found = f"{' x '.join(map(str, pixels.shape[1:]))} pixels"
        expected = f"{SMALLEST} pixels or more along each axis"
        yield Finding("warning", where, found, expected, "remove it, or join it with its neighbours")


def _odd_ones(observations: Sequence[_Observation]) -> Iterator[Finding]:
    """Cases whose number of channels or of axes differs from that of most others."""
    read = [seen for seen in observations if seen.shape is not None]
    kinds: tuple[tuple[str, Callable[[_Observation], int], str], ...] = (
        ("channels", lambda seen: seen.channels, "add --colour rgb or --colour gray, or keep it in a set of its own"),
        ("axes of space", lambda seen: len(seen.shape or ()), "keep 2-D and 3-D images in sets of their own"),
    )
    for what, count, fix in kinds:
        counts = Counter(map(count, read))
        usual = max(counts, key=lambda key: (counts[key], -key), default=0)
        for seen in read:
            if count(seen) != usual:
                expected = f"{usual} {what}, as {counts[usual]} of {len(read)} images have"
                yield Finding("error", seen.file.image_name, f"{count(seen)} {what}", expected, fix)


def _duplicates(observations: Sequence[_Observation], accepted: Accepted) -> Iterator[Finding]:
    """Images with the very same pixels under several names.

    Copies that are, or in a random split may be, on both sides make a test of what was learnt by heart: an error.
    """
    together, tested = sides([seen.file for seen in observations])
    same: dict[bytes, list[int]] = defaultdict(list)
    for index, seen in enumerate(observations):
        if seen.digest:
            same[seen.digest].append(index)
    for copies in same.values():
        if len(copies) > 1:
            files = [observations[index].file for index in copies]
            found = f"the same pixels in {', '.join(map(_called, files))}"
            parted = len({together[index] for index in copies}) > 1 and any(tested[index] for index in copies)
            level: Level = "error" if parted and not accepted.shared_images else "warning"
            expected = "each image once, and never both in training and in test" if parted else "each image once"
            yield Finding(level, files[1].image_name, found, expected, ONE_SIDE + (ACCEPT if parted else ""))


def _called(file: CaseFile) -> str:
    """Name a case beside another one: by its file, or by its pseudonym."""
    return file.id if file.alias else file.image.name


def _near_copies(observations: Sequence[_Observation], place: str) -> Iterator[Finding]:
    """Images that look the same and are, or in a random split may be, one in training and one in test."""
    together, tested = sides([seen.file for seen in observations])
    numbers = {unit: number for number, unit in enumerate(dict.fromkeys(together))}
    known: set[bytes] = set()  # of exact copies, one is compared
    pictures: dict[int, dict[int, Float32[np.ndarray, "values"]]] = defaultdict(dict)  # by length: 2-D, 3-D
    for index, seen in enumerate(observations):
        if seen.picture is not None and seen.digest not in known:
            known.add(seen.digest)
            pictures[len(seen.picture)][index] = seen.picture
    for comparable in pictures.values():
        members = list(comparable)
        units = np.array([numbers[together[index]] for index in members])
        can_test = np.array([tested[index] for index in members])
        found = nearest(np.stack(list(comparable.values())), units, can_test)
        if len(found) > max(FEW, len(members) / 3):
            text = f"{len(found)} of {len(members)} images look the same as another one at low resolution"
            fix = "compare some of them; if they are of one patient or film, give them one group in cases.csv"
            yield Finding("warning", place, text, "images that differ, so that copies can be recognised", fix)
            continue
        for one, other, alike in found:
            file, like = (observations[members[index]].file for index in (one, other))
            text = f"it looks the same as {_called(like)} (correlation {alike:.3f})"
            expected = "test images that are no copies of training images"
            yield Finding("warning", file.image_name, text, expected, f"compare both; if it is a copy, {ONE_SIDE}")


def _class_faults(observations: Sequence[_Observation], label_map: LabelMap, place: str) -> Iterator[Finding]:
    """Masks without foreground, and classes that no mask shows."""
    counted = [(seen, seen.pixels_of_class) for seen in observations if seen.pixels_of_class is not None]
    if not counted:
        return
    empty = [seen for seen, counts in counted if not counts[1:].any()]
    if len(empty) == len(counted):
        found = f"all {len(counted)} masks that can be read are empty"
        fix = f"draw the structures, or correct the label map ({label_map})"
        yield Finding("error", place, found, "foreground in some of them", fix)
        return
    for seen in empty:
        fix = "none if the image shows nothing to segment; else draw the mask"
        yield Finding("warning", seen.file.target_name, "an empty mask", "some foreground", fix)
    total = np.sum([counts for _, counts in counted], axis=0)
    for name, count in zip(label_map.names, total, strict=True):
        if count == 0:
            fix = "remove the class from the label map, or draw it"
            yield Finding("warning", place, f"no mask shows the class `{name}`", "some pixels of each class", fix)


def _facts(observations: Sequence[_Observation], label_map: LabelMap) -> dict[str, Any]:
    """Numbers that describe the set; class frequencies are fractions of the pixels of all masks that can be read."""
    read = [seen for seen in observations if seen.shape is not None]
    counts = [seen.pixels_of_class for seen in observations if seen.pixels_of_class is not None]
    fractions = np.sum(counts, axis=0) / np.sum(counts) if counts else []
    files = [seen.file for seen in observations]
    return {
        "images": len(files),
        "masks": sum(file.target is not None for file in files),
        "groups": len({file.group for file in files if file.group}),
        "splits": dict(Counter(file.split for file in files if file.split)),
        "dims": sorted({len(seen.shape or ()) for seen in read}),
        "shapes": dict(Counter(" x ".join(map(str, seen.shape or ())) for seen in read).most_common()),
        "dtypes": dict(Counter(seen.dtype for seen in read).most_common()),
        "channels": {str(key): count for key, count in Counter(seen.channels for seen in read).most_common()},
        "label_map": str(label_map),
        "class_frequencies": dict(zip(label_map.names, map(float, fractions), strict=False)),
    }

"""Discovery: the images and masks of a folder, paired by their names, with every fault that the names show."""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from nissl.config import DataConfig
from nissl.data.cases import CaseFile, Dataset, Finding, Layout, Scan, channels_in
from nissl.data.naming import DATA_FOLDER, Listing, core, counted, list_files, suggest
from nissl.data.table import read_table
from nissl.errors import DataError, InputError
from nissl.imageio.formats import SUFFIXES, read_header, stem
from nissl.imageio.label_map import LabelMap, default_map
from nissl.progress import warn

EXPORTS = {
    (".json", ".xml", ".geojson", ".csv", ".zip", ".roi"): "export the outlines of the annotation tool as label images",
    (".nrrd", ".mha", ".mhd"): "save them as NIfTI (.nii.gz), which 3D Slicer and ITK-SNAP write",
    (".npy", ".npz", ".mat"): "save the arrays as PNG or TIFF (`cellpose --save_tif`)",
    (".gif", ".webp", ".jp2"): "convert them to PNG",
}
"""How masks of other kinds become files that can be read."""
ADDED = re.compile(r"(?i)(.+?)((?:[\W_]|cp)*(?:masks?|seg(?:mentations?)?|labels?|annotations?|gt|manual\d*))")
"""A name that says of itself that it is a mask: that of the image, and what is added."""
SAMPLE = 50
"""Masks from whose names patterns are guessed."""
TOGETHER = "move the files into one folder, and name their subfolder as group in cases.csv"


def find_cases(root: Path | str, config: DataConfig = DataConfig()) -> Dataset:
    """Find the images and masks of a folder: `images/` and `masks/`, two folders by flags, or the Decathlon's.

    An image and its mask have the same name but for the suffix; images without a mask are the unlabelled ones.

    Raises:
        InputError: no such folder, no images in it, or a label map that cannot be read.
        DataError: the names alone show a fault that makes the set unusable, or no image can be read.

    """
    root = Path(root)
    return inspect_header(root, _require_sound(root, scan(root, config)), config)


def list_cases(root: Path, config: DataConfig) -> Scan:
    """List the cases of a folder by their names alone, and print what the names warn of; no image is opened.

    Raises:
        InputError: no such folder, no images in it, or a label map that cannot be read.
        DataError: the names show a fault that makes the set unusable.

    """
    scanned = _require_sound(root, scan(root, config))
    for finding in scanned.findings:
        warn(f"{finding.where}: {finding.found}; {finding.fix}")
    return scanned


def _require_sound(root: Path, scanned: Scan) -> Scan:
    errors = [finding for finding in scanned.findings if finding.level == "error"]
    if errors:
        first, others = errors[0], len(errors) - 1
        place = "DATA" if scanned.private else root
        listing = f"; run `nissl check {place}` to list all {len(errors)} faults" if others else ""
        raise DataError(first.where, first.found, first.expected, first.fix + listing)
    return scanned


def inspect_header(root: Path, scanned: Scan, config: DataConfig, ids: Collection[str] | None = None) -> Dataset:
    """Read dimensions and channels from the header of the first image that can be read, among `ids` where given.

    Raises:
        DataError: no image can be read.

    """
    unreadable: DataError | None = None
    for case in scanned.cases:
        if ids is not None and case.id not in ids:
            continue
        try:
            header = read_header(case.image, case.alias)
        except DataError as error:
            unreadable = unreadable or error
            continue
        channels = channels_in(config, header.channels)
        return Dataset(
            root, scanned.cases, scanned.label_map, len(header.shape), channels, scanned.layout, scanned.private
        )
    assert unreadable is not None  # there is at least one case, and none was readable
    raise unreadable


def scan(root: Path, config: DataConfig) -> Scan:
    """List the cases of a folder and every fault that shows without opening an image.

    Raises:
        InputError: no such folder, no images in it, or a label map that cannot be read.

    """
    found = _find_files(root, config)
    pictures, drawn, private = found.images, found.masks, found.images.private
    findings: list[Finding] = []
    image_files, mask_files = _by_id(pictures, found.place, findings), _by_id(drawn, found.mask_place, findings)
    if not image_files:
        raise _no_images(found)
    findings += _left_out(found)
    if found.mask_folder and not mask_files:
        findings.append(_empty_folder(found))
    if not mask_files:
        findings += _masks_elsewhere(root, found, image_files.keys())
    findings += _unpaired(found, image_files, mask_files)
    found_cases = [
        CaseFile(pictures.id(path), path, mask_files.get(key), alias=pictures.alias(path))
        for key, path in image_files.items()
    ]
    cases = {case.id: case for case in sorted(found_cases, key=lambda case: case.id)}
    cases |= read_table(root, (found.image_folder, found.mask_folder), cases, findings, private)
    if not any(case.group for case in cases.values()):
        findings += _names_of_groups(pictures, found.place)
    label_map = _label_map(root, found.layout, config, findings)
    return Scan(found.layout, tuple(cases.values()), label_map, tuple(findings), private)


@dataclass(frozen=True)
class _Files:
    """Images and masks of a data set, not yet paired."""

    layout: Layout
    image_folder: Path
    mask_folder: Path | None
    images: Listing
    masks: Listing

    @property
    def place(self) -> str:
        """What findings call the folder of images."""
        return DATA_FOLDER if self.images.private else str(self.image_folder)

    @property
    def mask_place(self) -> str:
        """What findings call the folder of masks."""
        return "the folder of masks" if self.images.private else str(self.mask_folder)


def _find_files(root: Path, config: DataConfig) -> _Files:
    """List images and masks; with a pattern for masks, they may lie among the images."""
    layout, images, masks = _folders(root, config)
    for folder in (root, images, masks or images):
        if not _is_utf8(folder):
            raise InputError(folder, "a folder whose name is not UTF-8", "a name that can be stored", "rename it")
    pattern = config.image_pattern
    if layout == "nnU-Net" and pattern == "*":
        channels = {stem(path)[-5:] for path in list_files(images).paths}
        pattern = f"*{min(channels)}"
        if len(channels) > 1:
            found, expected = f"nnU-Net's layout with {len(channels)} modalities of each case", "one file for each case"
            fix = "join the files of a case along a fourth axis (nibabel.concat_images), or train on one of them with "
            raise InputError(images, found, expected, f"{fix}--data.image-pattern '{pattern}'")
    pictures, drawn = list_files(images, pattern), Listing((), (), False)
    if masks is None and config.mask_pattern != "*":
        masks = images
    if masks:
        drawn = list_files(masks, config.mask_pattern)
    if masks and masks.resolve() == images.resolve():
        same = set(drawn.paths)
        pictures = replace(pictures, paths=tuple(path for path in pictures.paths if path not in same))
        unfit = tuple(path for path in pictures.unfit if path not in same)
        pictures, drawn = replace(pictures, unfit=unfit), replace(drawn, others=(), folders=(), unfit=())
    private = pictures.private or drawn.private
    return _Files(layout, images, masks, replace(pictures, private=private), replace(drawn, private=private))


def _is_utf8(path: Path) -> bool:
    return not re.search("[\ud800-\udfff]", str(path))


def _folders(root: Path, config: DataConfig) -> tuple[Layout, Path, Path | None]:
    """Layout, folder of images, and folder of masks if there is one."""
    if not root.is_dir():
        found = "a file" if root.exists() else "no such folder"
        raise InputError(root, found, "a folder with images/ and masks/", "check the path")
    decathlon = (root / "imagesTr").is_dir()
    usual = [root / name for name in (("imagesTr", "labelsTr") if decathlon else ("images", "masks"))]
    if config.images or config.masks:
        images, masks = (config.images or usual[0]), (config.masks or usual[1])
        for flag, given, folder in (("images", True, images), ("masks", config.masks, masks)):
            if given and not folder.is_dir():
                raise InputError(folder, "no such folder", f"a folder of {flag}", f"correct --data.{flag}")
        return "folders", images, masks if masks.is_dir() else None
    images, masks = usual
    if not images.is_dir():
        raise _no_layout(root)
    if not decathlon:
        return "images+masks", images, masks if masks.is_dir() else None
    names, drawn = ({stem(path) for path in list_files(folder).paths} for folder in usual)
    numbered = all(re.search(r"_\d{4}$", name) for name in names) and drawn and not drawn & names
    return "nnU-Net" if numbered else "decathlon", images, masks if masks.is_dir() else None


def _no_layout(root: Path) -> InputError:
    """Say what lies in a folder that has none of the known layouts, and which flags would read it."""
    whole = list_files(root)
    inside = {path: list_files(path) for path in whole.folders}
    private = whole.private or any(listing.private for listing in inside.values())
    parts = [counted(len(whole.paths), "image")] if whole.paths else []
    names = [f"{path.name} ({counted(len(listing.paths), 'image')})" for path, listing in inside.items()]
    parts += [f"folders {', '.join(names[:8])}"] if names and not private else []
    found = ", ".join(parts) or "no folder inside"
    fix = "arrange the files so, or name the folders with --data.images and --data.masks"
    return InputError(root, found, "images/ and masks/ (or imagesTr/, labelsTr/ and dataset.json)", fix)


def _no_images(found: _Files) -> InputError:
    listing = found.images
    left = f", but {listing.left_out}" if listing.left_out else ""
    fix = TOGETHER if listing.folders else "name the folder with --data.images; DICOM files need the suffix .dcm"
    return InputError(found.image_folder, f"no images{left}", f"files of kind {' '.join(SUFFIXES)}", fix)


def _by_id(files: Listing, place: str, findings: list[Finding]) -> dict[str, Path]:
    """Files by id in lower case and without spaces around it; two files of one id are a finding.

    Upper and lower case count as equal, since the outputs would overwrite each other on many file systems.
    """
    same: dict[str, list[Path]] = defaultdict(list)
    for path in files.paths:
        same[files.id(path).casefold().strip()].append(path)
    for twins in same.values():
        if len(twins) > 1:
            names = ", ".join(files.position(path) if files.private else path.name for path in twins)
            where = files.alias(twins[1]) or str(twins[1])
            expected = "one file for each id (upper and lower case count as equal, and spaces at the end do not count)"
            findings.append(
                Finding("error", where, f"the same id in {names}", expected, "rename or remove all but one")
            )
    return {key: twins[0] for key, twins in same.items()}


def _left_out(found: _Files) -> Iterator[Finding]:
    """What lies beside images and masks and is not read; masks that are taken for images."""
    expected = f"files of kind {' '.join(SUFFIXES)}"
    for listing, place in ((found.images, found.place), (found.masks, found.mask_place)):
        if listing.paths and listing.left_out:
            fix = TOGETHER if listing.folders else "convert or rename them if they should be used"
            yield Finding("warning", place, f"not read: {listing.left_out}", expected, fix)
    names = {stem(path) for path in found.images.paths}
    added = [match for name in names if (match := ADDED.fullmatch(name)) and match[1] in names]
    if added:
        usual, count = Counter(match[2] for match in added).most_common(1)[0]
        said = f"{counted(count, 'file')} called like another image and `{usual}`, which are read as images"
        fix = f"if they are masks, add --data.mask-pattern '*{usual}'; else rename them"
        yield Finding("error", found.place, said, "images alone", fix)


def _empty_folder(found: _Files) -> Finding:
    """State what a folder of masks holds in which no mask can be read, and how to export it."""
    listing = found.masks
    here = {path.suffix.lower() for path in listing.others}
    fixes = [fix for kinds, fix in EXPORTS.items() if here & set(kinds)]
    if listing.folders:
        fixes.append("bring the files of each subfolder, such as one for each object, into one mask for each image")
    holds = f"no mask but {listing.left_out}" if listing.left_out else "an empty mask folder"
    fix = "; ".join(fixes) or "put the masks there, name their folder with --data.masks, or remove the empty folder"
    return Finding("error", found.mask_place, holds, f"one mask or more, of kind {' '.join(SUFFIXES)}", fix)


def _masks_elsewhere(root: Path, found: _Files, images: Collection[str]) -> Iterator[Finding]:
    """The folder beside the images whose files have the names of images."""
    hits: dict[Path, int] = {}
    for folder in list_files(root).folders:
        if folder.resolve() != found.image_folder.resolve():
            listing = replace(list_files(folder), private=found.images.private)
            ids = {listing.id(path).casefold() for path in listing.paths}
            hits[folder] = len(ids.intersection(images)) or len(ids) * bool(_guess_patterns(images, sorted(ids)))
    best = max(hits, key=lambda folder: hits[folder], default=root)
    if hits.get(best):
        name = "another folder" if found.images.private else f"{best.name}/"
        said = f"no masks, but {name} holds {counted(hits[best], 'file')} with the names of images"
        fix = f"add --data.images {found.image_folder} --data.masks {best}, if these are the masks"
        fix = "add --data.images and --data.masks, if these are the masks" if found.images.private else fix
        yield Finding("warning", found.place, said, "a folder of masks", fix)


def _unpaired(found: _Files, image_files: Mapping[str, Path], mask_files: Mapping[str, Path]) -> Iterator[Finding]:
    """Masks without image: one finding where a pattern of names would pair them, else one for each."""
    lone = sorted(mask_files.keys() - image_files.keys())
    drawn = found.masks
    if lone:
        free = [stem(path) for key, path in image_files.items() if key not in mask_files]
        patterns = _guess_patterns(free, [stem(mask_files[key]) for key in lone])
        if patterns:
            flags = zip(("--data.image-pattern", "--data.mask-pattern"), patterns, strict=True)
            given = " ".join(f"{flag} '{pattern}'" for flag, pattern in flags if pattern != "*")
            given = "--data.image-pattern and --data.mask-pattern, which say so" if drawn.private else given
            named = "" if drawn.private else f", such as {mask_files[lone[0]].name}"
            said = f"{counted(len(lone), 'mask')} whose names add something to those of images, or lack it{named}"
            yield Finding("error", found.mask_place, said, "masks with the names of images", f"add {given}")
            return
    spelt = {key: path for key, path in image_files.items() if key not in mask_files}
    for key in lone:
        path = mask_files[key]
        where = f"mask {drawn.alias(path)}" if drawn.private else str(path)
        near = "" if drawn.private else suggest(key, spelt)
        said = f"a mask without image{f' ({near})' if near else ''}"
        expected = f"an image of that name in {found.place}"
        yield Finding("error", where, said, expected, "give the image the name of its mask, or remove the mask")


def _guess_patterns(images: Collection[str], masks: Sequence[str]) -> tuple[str, str] | None:
    """Patterns of the names of images and of masks that pair most of the masks; None where there are none."""
    tally: Counter[tuple[str, str]] = Counter({(_common(images), _common(masks)): 1})
    for mask in masks[:SAMPLE]:
        for image in images:
            if image in mask:
                tally["*", mask.replace(image, "*", 1)] += 1
            elif mask in image:
                tally[image.replace(mask, "*", 1), "*"] += 1
    for patterns, _ in tally.most_common(SAMPLE):
        if all(pattern.count("*") == 1 for pattern in patterns) and patterns != ("*", "*"):
            ids = {core(image, patterns[0]) for image in images} - {None}
            if 2 * sum(core(mask, patterns[1]) in ids for mask in masks) > len(masks) > 1:
                return patterns
    return None


def _common(names: Collection[str]) -> str:
    """The pattern of what all names begin and end with, digits at its inner ends left out."""
    prefix = os.path.commonprefix
    start = prefix(list(names)).rstrip("0123456789")
    end = prefix([name[len(start) :][::-1] for name in names]).rstrip("0123456789")
    return f"{start}*{end[::-1]}"


def _names_of_groups(pictures: Listing, place: str) -> Iterator[Finding]:
    """Names that begin as those of several others, as slices of a patient do, where no group is known."""
    names = [re.sub(r"^([^\W\d]+\d+)([^\W\d]+\d+)$", r"\1_\2", stem(path)) for path in pictures.paths]
    parts = [re.findall(r"[^\W_]+", name) for name in names]
    for length in range(1, max(map(len, parts), default=0)):
        starts = Counter(" ".join(words[:length]) for words in parts)
        if len(starts) > 1:
            break
    else:
        return
    if 3 <= len(starts) <= len(names) / 2 and max(starts.values()) <= len(names) / 2:
        example = "" if pictures.private else f", such as {pictures.paths[0].name}"
        said = f"the names of {len(names)} images begin in {len(starts)} ways, as if they were groups{example}"
        fix = "name patients, animals or slides as groups in cases.csv; else they may be both in training and in test"
        yield Finding("warning", place, said, "the group of each image in cases.csv", fix)


def _label_map(root: Path, layout: str, config: DataConfig, findings: list[Finding]) -> LabelMap:
    if config.label_map:
        return LabelMap.parse(config.label_map)
    description = root / "dataset.json"
    try:
        return default_map(description if layout in ("decathlon", "nnU-Net") and description.is_file() else None)
    except DataError as error:
        findings.append(Finding.of(error))
        return default_map(None)

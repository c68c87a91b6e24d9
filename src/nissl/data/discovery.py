"""Discovery: the images and masks of a folder, paired by their names, with every fault that the names show."""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

from nissl.config import DataConfig
from nissl.data.cases import CaseFile, Dataset, Finding, Layout, Scan, channels_in
from nissl.data.naming import Listing, core, counted, list_files, suggest
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
KINDS = f"files of kind {' '.join(SUFFIXES)}"
SAMPLE = 50
"""Masks from whose names patterns are guessed."""
NNUNET = "; of modalities in files of their own (nnU-Net), join those of a case by nibabel.concat_images to use all"
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
    """List the cases as `find_cases` does, by their names alone, and print what these warn of; no image is opened."""
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

    Where none can be read, the DataError of the first is raised.
    """
    unreadable: list[DataError] = []
    for case in (case for case in scanned.cases if ids is None or case.id in ids):
        try:
            header = read_header(case.image, case.alias, config.axes)
        except DataError as error:
            unreadable.append(error)
            continue
        channels = channels_in(config, header.channels)
        return Dataset(**vars(scanned), root=root, dims=len(header.shape), channels=channels)
    raise unreadable[0]  # there is at least one case, and none was readable


def scan(root: Path, config: DataConfig) -> Scan:
    """List the cases of a folder and every fault that shows without opening an image; InputError as of `find_cases`."""
    layout, images, masks = _list_both(root, config)
    findings: list[Finding] = []
    image_files, mask_files = _by_id(images, findings), _by_id(masks, findings)
    if not image_files:
        left = f", but {images.left_out}" if images.left_out else ""
        fix = TOGETHER if images.folders else "name the folder with --data.images; DICOM files need the suffix .dcm"
        raise InputError(images.folder, f"no images{left}", KINDS, fix)
    findings += _left_out(images, masks)
    if not mask_files:
        findings += [*_no_masks(masks), *_masks_elsewhere(root, images, image_files.keys())]
    free = {key: path for key, path in image_files.items() if key not in mask_files}
    findings += _unpaired(masks, free, {key: mask_files[key] for key in sorted(mask_files.keys() - image_files.keys())})
    found_cases = [
        CaseFile(images.id(path), path, mask_files.get(key), alias=images.alias(path))
        for key, path in image_files.items()
    ]
    cases = {case.id: case for case in sorted(found_cases, key=lambda case: case.id)}
    cases |= read_table(root, (images.folder, masks.folder), cases, findings, images.private)
    if not findings and not any(case.group for case in cases.values()):
        findings += _names_of_groups(images)
    label_map = _label_map(root, layout, config, findings)
    return Scan(layout, tuple(cases.values()), label_map, tuple(findings), images.private)


def _list_both(root: Path, config: DataConfig) -> tuple[Layout, Listing, Listing]:
    """List images and masks; with a pattern for masks, they may lie among the images."""
    layout, image_folder, mask_folder = _folders(root, config)
    if config.mask_pattern != "*" and not mask_folder.is_dir():
        mask_folder = image_folder
    images, masks = list_files(image_folder, config.image_pattern), list_files(mask_folder, config.mask_pattern)
    if mask_folder.resolve() == image_folder.resolve():
        paths, unfit = (tuple(sorted({*part} - {*masks.paths})) for part in (images.paths, images.unfit))
        images, masks = replace(images, paths=paths, unfit=unfit), replace(masks, others=(), folders=(), unfit=())
    private = images.private or masks.private
    return layout, replace(images, private=private), replace(masks, private=private)


def located(root: Path, folder: Path) -> Path:
    """Where a folder of images or masks is that the settings name: in the data root, else from the working folder."""
    return root / folder if (root / folder).is_dir() else folder


def _folders(root: Path, config: DataConfig) -> tuple[Layout, Path, Path]:
    """Layout, folder of images, and folder of masks, which need not exist."""
    if not root.is_dir():
        found = "a file" if root.exists() else "no such folder"
        raise InputError(root, found, "a folder with images/ and masks/", "check the path")
    decathlon = (root / "imagesTr").is_dir()
    images, masks = (root / name for name in (("imagesTr", "labelsTr") if decathlon else ("images", "masks")))
    if config.images or config.masks:
        images, masks = located(root, config.images or images), located(root, config.masks or masks)
        for flag, given, folder in (("images", True, images), ("masks", config.masks, masks)):
            if given and not folder.is_dir():
                raise InputError(folder, "no such folder", f"a folder of {flag}", f"correct --data.{flag}")
        return "folders", images, masks
    if images.is_dir():
        return "decathlon" if decathlon else "images+masks", images, masks
    here = list_files(root)
    private = here.private or any(list_files(folder).private for folder in here.folders)
    names = "of DICOM" if private else ", ".join(folder.name for folder in here.folders[:8])
    found = f"folders {names}" if here.folders else "no folder inside"
    found += f", and {counted(len(here.paths), 'image')}" if here.paths else ""
    fix = "arrange the files so, or name the folders with --data.images and --data.masks"
    raise InputError(root, found, "images/ and masks/ (or imagesTr/, labelsTr/ and dataset.json)", fix)


def _by_id(files: Listing, findings: list[Finding]) -> dict[str, Path]:
    """Files by id in lower case, without spaces at its ends; two files of one id are a finding.

    Upper and lower case count as equal, since the outputs would overwrite each other on many file systems.
    """
    same: dict[str, list[Path]] = defaultdict(list)
    for path in files.paths:
        same[files.id(path).casefold().strip()].append(path)
    for twins in same.values():
        if len(twins) > 1:
            names = ", ".join(files.position(path) if files.private else path.name for path in twins)
            where = files.alias(twins[1]) or str(twins[1])
            expected = "one file for each id (upper and lower case count as equal, spaces at its ends do not count)"
            found = f"the same id in {names}"
            findings.append(Finding("error", where, found, expected, "rename or remove all but one"))
    return {key: twins[0] for key, twins in same.items()}


def _left_out(images: Listing, masks: Listing) -> Iterator[Finding]:
    """What lies beside images and masks and is not read; masks that are taken for images."""
    for files in (images, masks):
        if files.paths and files.left_out:
            fix = TOGETHER if files.folders else "convert or rename them if they should be used"
            yield Finding("warning", files.place, f"not read: {files.left_out}", KINDS, fix)
    names = {stem(path) for path in images.paths}
    added = Counter(match[2] for name in names if (match := ADDED.fullmatch(name)) and match[1] in names)
    for ending, count in added.items():
        found = f"{counted(count, 'image')} called like another one and `{ending}`"
        fix = f"if they are masks, add --data.mask-pattern '*{ending}'; else rename them"
        yield Finding("error", images.place, found, "images alone", fix)


def _no_masks(masks: Listing) -> Iterator[Finding]:
    """What a folder of masks holds in which none can be read, and how to export it."""
    if masks.folder.is_dir():
        fixes = [fix for kinds, fix in EXPORTS.items() if {path.suffix.lower() for path in masks.others} & {*kinds}]
        if masks.folders:
            fixes.append("bring the files of each subfolder, such as one for each object, into one mask for each image")
        found = f"no mask but {masks.left_out}" if masks.left_out else "an empty mask folder"
        fix = "; ".join(fixes) or "put the masks there, name their folder with --data.masks, or remove the empty folder"
        yield Finding("error", masks.place, found, f"one mask or more, {KINDS}", fix)


def _masks_elsewhere(root: Path, images: Listing, ids: Collection[str]) -> Iterator[Finding]:
    """The folder beside the images whose files have the names of images, as they are or with an addition."""
    hits: dict[Path, int] = {}
    for folder in list_files(root).folders:
        if folder.samefile(images.folder):
            continue
        files = replace(list_files(folder), private=images.private)
        names = {files.id(path).casefold() for path in files.paths}
        hits[folder] = len(names.intersection(ids)) or len(names) * bool(_guess_patterns(ids, sorted(names)))
    best = max(hits, key=lambda folder: hits[folder], default=root)
    if hits.get(best):
        shown, other = ("DIR", "another folder") if images.private else (str(best), f"{best.name}/")
        found = f"no masks, but {other} holds {counted(hits[best], 'file')} with the names of images"
        flags = f"--data.masks {shown}" + ("" if images.folder.name == "images" else f" --data.images {images.place}")
        yield Finding("warning", images.place, found, "a folder of masks", f"add {flags}, if these are the masks")


def _unpaired(masks: Listing, free: Mapping[str, Path], lone: Mapping[str, Path]) -> Iterator[Finding]:
    """Masks without image: one finding where a pattern of names would pair them, else one for each."""
    patterns = _guess_patterns([stem(path) for path in free.values()], [stem(path) for path in lone.values()])
    if patterns:
        flags = zip(("--data.image-pattern", "--data.mask-pattern"), patterns, strict=True)
        given = " ".join(f"{flag} {'...' if masks.private else repr(text)}" for flag, text in flags if text != "*")
        named = masks.example(next(iter(lone.values())))
        found = f"{counted(len(lone), 'mask')} whose names add something to those of images, or lack it{named}"
        fix = f"add {given}{NNUNET if patterns[0] == '*_0000' else ''}"
        yield Finding("error", masks.place, found, "masks with the names of images", fix)
        return
    for key, path in lone.items():
        where = f"mask {masks.alias(path)}" if masks.private else str(path)
        near = "" if masks.private else suggest(key, free)
        found, expected = f"a mask without image {near and f'({near})'}".rstrip(), "masks with the names of images"
        yield Finding("error", where, found, expected, "give the image the name of its mask, or remove the mask")


def _guess_patterns(images: Collection[str], masks: Sequence[str]) -> tuple[str, str] | None:
    """Patterns of the names of images and of masks that pair most of the masks; None where there are none."""
    tally = Counter([(_common(images), _common(masks))])
    for mask, image in product(masks[:SAMPLE], images):
        if image in mask:
            tally["*", mask.replace(image, "*", 1)] += 1
        elif mask in image:
            tally[image.replace(mask, "*", 1), "*"] += 1
    for patterns, _ in tally.most_common(SAMPLE):
        if patterns[0].count("*") == patterns[1].count("*") == 1 and patterns != ("*", "*"):
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


def _names_of_groups(images: Listing) -> Iterator[Finding]:
    """Names that begin as those of several others, as slices of a patient do, where no group is known."""
    names = [re.sub(r"\W*[\[(].*", "_tile", stem(path)) for path in images.paths]  # as QuPath names them
    names = [re.sub(r"^([^\W\d]+\d+)([^\W\d]+\d+)$", r"\1_\2", name) for name in names]
    parts = [re.findall(r"[^\W_]+", name) for name in names]
    lengths = range(1, max(map(len, parts)))
    counts = (Counter(" ".join(words[:length]) for words in parts) for length in lengths)
    starts = next((found for found in counts if len(found) > 1), Counter())
    if 3 <= len(starts) <= len(names) / 2 >= max(starts.values()):
        found = f"the names of {len(names)} images begin in {len(starts)} ways, as if they were groups"
        fix = "name patients, animals or slides as groups in cases.csv; else they may be both in training and in test"
        example = images.example(images.paths[0])
        yield Finding("warning", images.place, found + example, "the group of each image in cases.csv", fix)


def _label_map(root: Path, layout: Layout, config: DataConfig, findings: list[Finding]) -> LabelMap:
    if config.label_map:
        return LabelMap.parse(config.label_map)
    description = root / "dataset.json"
    try:
        return default_map(description if layout == "decathlon" and description.is_file() else None)
    except DataError as error:
        findings.append(Finding.of(error))
        return default_map(None)

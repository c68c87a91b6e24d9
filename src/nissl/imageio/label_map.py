"""The label map: which value or colour of a mask file is which class. Nothing is guessed from the pixels."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float, Num, UInt8

from nissl.errors import DataError, InputError
from nissl.imageio.formats import LOSSY, Raster, suffix
from nissl.imageio.raster import UnusableError

MANY = 8
LISTED = 10
ALIKE = 2.25
"""Of the four neighbours of a pixel, how many have its value: 2.4 or more in instance ids of four pixels across, and
2.1 or less in grays at edges (smoothed by up to 10 pixels, JPEG of any quality)."""
APART = 64
"""Difference of two values that JPEG leaves apart where it has changed nothing else."""
BACKGROUND, IGNORED = "background", ("ignore", "ignored")


@dataclass(frozen=True)
class LabelMap:
    """Class names, in the order of their index, and the codes that stand for them.

    A code is a pixel value, or a colour packed as 0xRRGGBB where `colours` is set. Without codes the map is binary:
    0 is background and every other value is foreground; or, with a threshold, every value above it.
    """

    names: tuple[str, ...]
    codes: tuple[tuple[int, int], ...] = ()
    """Pairs of code and class index."""
    colours: bool = False
    threshold: float | None = None

    def __str__(self) -> str:
        """The text that `parse` reads."""
        if self.threshold is not None:
            return f"threshold={self.threshold:.12g}"
        if not self.codes:
            return "binary"
        return ",".join(f"{_written(code, self.colours)}={self.names[index]}" for code, index in self.codes)

    @classmethod
    def of(cls, pairs: Sequence[tuple[int, str]], colours: bool = False) -> "LabelMap":
        """Make a map from codes and names; codes of one name share a class, `background` or else the first is class 0.

        Raises:
            InputError: no class can be told to be the background, or a value is to be ignored.

        """
        names = tuple(sorted(dict.fromkeys(name for _, name in pairs), key=lambda name: name.lower() != BACKGROUND))
        label_map = cls(names, tuple((code, names.index(name)) for code, name in pairs), colours)
        if ignored := [name for name in names if name.lower() in IGNORED]:
            expected = "a class for each value: there is no way yet to leave pixels out of loss and scores"
            fix = "cut the images to what was annotated, or name the class that these pixels belong to"
            raise _refused(f"the name `{ignored[0]}` in `{label_map}`", expected, fix)
        if names[0].lower() != BACKGROUND and pairs[0][0] != 0:
            zero = _written(0, colours)
            expected = f"a class named `{BACKGROUND}`, or {zero} as the first value, which then is the background"
            raise _refused(f"no background in `{label_map}`", expected, f"name it `{BACKGROUND}`")
        return label_map

    @classmethod
    def parse(cls, text: str) -> "LabelMap":
        """Read `binary`, `threshold=127`, `0,1,2`, `0=background,255=gland` or `#000000=background,#ff0000=gland`.

        The class named background is class 0, or else that of value 0 (colour #000000), which then comes first; several
        codes may carry one name. In `0,1,2` value 0 is named background and the others are named by their value.

        Raises:
            InputError: a part cannot be read, a code occurs twice, there are fewer than two or over 256 classes, no
                class can be told to be the background, or a value is to be ignored.

        """
        if text.strip() == "binary":
            return cls((BACKGROUND, "foreground"))
        if found := re.fullmatch(r"threshold=(\d{1,9}(?:\.\d{1,6})?)", text.strip()):
            return cls((BACKGROUND, "foreground"), threshold=float(found[1]))
        pairs: list[tuple[int, str]] = []
        kinds: set[bool] = set()
        for part in text.split(","):
            found = re.fullmatch(r"\s*(?:(-?\d{1,18})|#([0-9a-fA-F]{6}))\s*(?:=\s*(\S(?:.*\S)?)\s*)?", part)
            if not found:
                raise _refused(f"`{part.strip()}` in `{text}`")
            value, colour, name = found.groups()
            code = int(colour, 16) if colour else int(value)
            if any(code == other for other, _ in pairs):
                raise _refused(f"`{value or '#' + colour}` twice in `{text}`")
            kinds.add(colour is not None)
            pairs.append((code, name or (str(value or "#" + colour) if code else BACKGROUND)))
        label_map = cls.of(pairs, colours=True in kinds)
        if len(kinds) > 1:
            raise _refused(f"values and colours together in `{text}`")
        if not 2 <= len(label_map.names) <= 256:
            raise _refused(f"{len(label_map.names)} classes in `{text}`")
        return label_map

    def written(self, foreground: int = 255) -> tuple[int | str, ...]:
        """What stands for each class in a mask that this map reads: its first value, or its first colour `#rrggbb`.

        A binary mask has `foreground`. Empty, which means class numbers, where masks cannot hold the values.
        """
        if not self.codes:
            top = 0 if self.threshold is None else self.threshold
            high = next((value for value in (foreground, 255, 65535) if value > top), None)
            return () if high is None else (0, high)
        first = {index: code for code, index in reversed(self.codes)}
        codes = [first[index] for index in range(len(self.names))]
        if self.colours:
            return tuple(_written(code, True) for code in codes)
        return tuple(codes) if min(codes) >= 0 and max(codes) < 2**16 else ()

    @classmethod
    def reading(cls, names: Sequence[str], written: Sequence[int | str]) -> "LabelMap":
        """The map that reads masks in which `written` stands for the classes; if it is empty, class numbers do."""
        codes = [int(value[1:], 16) if isinstance(value, str) else value for value in written or range(len(names))]
        pairs = tuple((code, index) for index, code in enumerate(codes))
        return cls(tuple(names), pairs, any(isinstance(value, str) for value in written))

    def apply(self, raster: Raster, path: Path, alias: str | None = None) -> UInt8[np.ndarray, "*space"]:
        """Class of each pixel of a mask; a colour map reads palettes and gray values as colours.

        With an `alias`, errors call the mask by it.

        Raises:
            DataError: the mask holds values that are not in the map, several channels, numbers that are no labels,
                grays at edges where numbers of structures could be, or what lossy compression has changed.

        """
        if suffix(path) in LOSSY:
            raster = replace(raster, lossy=True)
        try:
            labels = self._labels(raster)
            if raster.clear is not None and (labels[raster.clear].any() or not labels.any()):
                count = int(raster.clear.sum())
                found = f"{count} transparent pixels (alpha) that its values do not show as background"
                fix = "write the mask without transparency, each class in a value or colour of its own"
                raise UnusableError(found, f"opaque values ({self})", fix)
        except UnusableError as error:
            raise DataError(alias or path, str(error), error.expected, error.fix) from None
        return labels

    def _labels(self, raster: Raster) -> UInt8[np.ndarray, "*space"]:
        values = self._values(raster)
        if self.threshold is not None:
            return np.asarray(values > self.threshold, np.uint8)
        if raster.lossy and not _two_apart(values):
            raise self._unexpected(values, np.ones(values.shape, bool), raster)
        if not self.codes:  # every value but 0, where the values are one, or numbers of structures
            foreground = values != 0
            between = foreground & (values != values.max(initial=0))
            if values.min(initial=0) < 0 or (between.any() and (foreground.all() or has_gray_edges(values))):
                raise self._unexpected(values, between, raster)
            return np.asarray(foreground, np.uint8)
        labels = np.zeros(values.shape, np.uint8)
        known = np.zeros(values.shape, bool)
        for code, index in self.codes:
            hit = values == code
            known |= hit
            labels[hit] = index
        if not known.all():
            raise self._unexpected(values, ~known, raster)
        return labels

    def _values(self, raster: Raster) -> Num[np.ndarray, "*space"]:
        """The pixels as one code each."""
        pixels = raster.pixels
        if raster.inverted:
            found, fix = "a mask that shows 0 as white (MONOCHROME1, WhiteIsZero)", "write it as PNG or NIfTI"
            raise UnusableError(found, "class numbers as they are stored", fix)
        packed = _packed(raster) if self.colours or raster.palette is not None or len(pixels) > 1 else None
        if self.colours:
            if packed is None:
                found = f"{len(pixels)} channels of {pixels.dtype}"
                raise UnusableError(found, "an 8-bit RGB, gray or palette mask", "write the mask as 8-bit RGB PNG")
            return packed
        if raster.palette is not None and packed is not None and self._is_odd(raster.palette, np.unique(pixels[0])):
            found = f"a palette with the colours {_listed(packed, True)} at other positions than gray has"
            raise UnusableError(found, f"values ({self}), which are its positions", _colour_fix(packed, raster.lossy))
        if len(pixels) > 1 and not (pixels == pixels[:1]).all():
            found, fix = f"a mask of {len(pixels)} channels", "write the mask with one channel of class numbers"
            if packed is not None:
                found = f"an RGB mask with the colours {_listed(packed, True)}"
                fix = _colour_fix(packed, raster.lossy)
            raise UnusableError(found, f"one channel of values ({self})", fix)
        values: Num[np.ndarray, "*space"] = pixels[0]
        if values.dtype.kind == "f":
            self._require_whole(values)
        return values

    def _require_whole(self, values: Float[np.ndarray, "*space"]) -> None:
        """Refuse what is no number, and fractions where there is no threshold."""
        broken = ~np.isfinite(values)
        odd = values[~broken & (values != np.rint(values))] if self.threshold is None else values[:0]
        parts = [f"NaN or infinity ({int(broken.sum())} pixels)"] if broken.any() else []
        parts += [f"fractions such as {odd[0]:g} ({odd.size} pixels)"] if odd.size else []
        fix = f"read them with a threshold: {_threshold_of(values[~broken])}; or write the mask without fractions"
        fix = "set these pixels to a class, then write the mask again" if broken.any() else fix
        if parts:
            raise UnusableError(" and ".join(parts), f"whole numbers ({self})", fix)

    def _is_odd(self, palette: UInt8[np.ndarray, "n 3"], positions: np.ndarray) -> bool:
        """Whether black is at a position other than 0 too, or, for a threshold, grays are not at their positions."""
        colours = palette[np.minimum(positions, len(palette) - 1)]
        black = ~colours.any(axis=1)
        odd = self.threshold is not None or (black & (positions > 0)).any()
        return bool(odd and not (colours == positions[:, None]).all())

    def _unexpected(self, values: np.ndarray, bad: np.ndarray, raster: Raster) -> UnusableError:
        everything = np.unique(values).tolist()
        found = f"unexpected values {_listed(values[bad], self.colours)}"
        expected = f"only the values of the label map ({self})"
        if not self.codes:
            expected = f"0 and one other value, or 0 and a number for each structure ({self})"
        threshold = f"read what is above the middle as foreground: {_threshold_of(values)}"
        classes = ",".join(f"{int(code)}={f'class{n}' if n else BACKGROUND}" for n, code in enumerate(everything))
        gray = everything[0] >= 0 and has_gray_edges(values)
        if raster.lossy:
            found = f"JPEG compression, and {found}"
            fix = "JPEG is lossy and changes values: export the mask again as PNG or TIFF without it"
            fix += "" if self.colours else f", or {threshold}"
        elif self.colours or raster.palette is not None:
            packed = _packed(raster)
            fix = "write the mask as 8-bit RGB PNG" if packed is None else _colour_fix(packed, raster.lossy)
        elif gray and (not self.codes or len(everything) > MANY):
            found = f"grays at edges: {found}"
            fix = f"if edges are smooth or damaged, {threshold}; if all but 0 is foreground: --label-map threshold=0"
            fix += f"; if each value is a class: --label-map {classes}" if len(everything) <= MANY else ""
        elif not self.codes:
            fix = f"name the background: --label-map {classes}" if len(everything) <= MANY else "number it 0"
            fix += "" if everything[0] < 0 else "; if all of it is foreground: --label-map threshold=0"
        elif len(everything) == 2 and everything[0] == 0:
            fix = "if 0 is background and the other value is foreground, add `--label-map binary`"
        elif len(everything) > MANY:
            fix = "if these are instance ids, add `--label-map binary`; else correct the mask"
        else:
            listed = ",".join(str(int(code)) for code in everything)
            fix = f"if these are grays at edges, {threshold}; " if gray else ""
            fix += "if these are instance ids, add `--label-map binary`; if each value is a class, add "
            fix += f"`--label-map {listed if 0 in everything else classes}`; else correct the mask"
        return UnusableError(found, expected, fix)


def has_gray_edges(values: Num[np.ndarray, "*space"]) -> bool:
    """Whether the values between 0 and the largest are grays at edges, not pieces of their own as numbers are."""
    between = (values != 0) & (values != values.max(initial=0))
    if not between.any():
        return False
    alike = np.zeros(values.shape, np.uint8)
    for axis in (-2, -1):
        lines, counts = np.moveaxis(values, axis, 0), np.moveaxis(alike, axis, 0)
        same = lines[1:] == lines[:-1]
        counts[1:] += same
        counts[:-1] += same
    return bool(alike[between].mean() < ALIKE)


def _two_apart(values: np.ndarray) -> bool:
    """Whether there are no more than two values, so far apart that no compression can have mixed them."""
    low, high = values.min(initial=0), values.max(initial=0)
    return bool(((values == low) | (values == high)).all() and (low == high or int(high) - int(low) >= APART))


def _threshold_of(values: np.ndarray) -> str:
    """The label map with a threshold in the middle of what is there."""
    middle = (float(values.min(initial=0)) + float(values.max(initial=0))) / 2
    return f"--label-map threshold={max(0.0, middle if values.dtype.kind == 'f' else middle // 1):g}"


def default_map(dataset_json: Path | None) -> LabelMap:
    """The map used when none is given: the labels of a Decathlon dataset.json, else the values 0 and 1.

    Raises:
        DataError: dataset.json cannot be read or holds no labels.

    """
    if dataset_json is None:
        return LabelMap.of(((0, BACKGROUND), (1, "foreground")))
    fix = "correct the file, or state the classes with --label-map"
    try:
        labels = json.loads(dataset_json.read_text(encoding="utf-8"))["labels"]
        # The Decathlon writes value: name, its successors name: value.
        pairs = [(int(key), str(name)) if str(key).isdigit() else (int(name), str(key)) for key, name in labels.items()]
        if len({name for _, name in pairs}) < 2:
            raise DataError(dataset_json, f"labels {labels}", "two classes or more", fix)
        return LabelMap.of(sorted(pairs))
    except InputError as error:
        raise DataError(dataset_json, error.found, error.expected, f"{error.fix}, or use --label-map") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        found = f"no `labels` that can be read ({type(error).__name__}: {error})"
        raise DataError(dataset_json, found, '"labels": {"0": "background", "1": "..."}', fix) from error


def _refused(
    found: str,
    expected: str = "`binary`, `threshold=127`, values `0,1,2` or `0=background,255=gland`, or colours "
    "`#000000=background,...`",
    fix: str = "correct the part that is named; each value once, two classes or more",
) -> InputError:
    return InputError("--label-map", found, expected, fix, "label-map")


def _packed(raster: Raster) -> Num[np.ndarray, "*space"] | None:
    """Colours as 0xRRGGBB; None where the pixels are no 8-bit colours."""
    pixels = raster.pixels
    if raster.palette is not None:
        red, green, blue = np.moveaxis(raster.palette[np.minimum(pixels[0], len(raster.palette) - 1)], -1, 0)
    elif pixels.dtype == np.uint8 and len(pixels) in (1, 3):
        red, green, blue = np.broadcast_to(pixels, (3, *pixels.shape[1:]))
    else:
        return None
    return np.asarray((red.astype(np.int32) << 16) | (green.astype(np.int32) << 8) | blue)


def _written(code: float, colours: bool) -> str:
    return f"#{int(code):06x}" if colours else f"{code:g}" if isinstance(code, float) else str(code)


def _listed(values: np.ndarray, colours: bool) -> str:
    """The first of the values with their counts: `3 (120 pixels), 4 (7 pixels) and 5 more`."""
    codes, counts = (part.tolist() for part in np.unique(values, return_counts=True))
    shown = [f"{_written(code, colours)} ({count} pixels)" for code, count in zip(codes[:LISTED], counts, strict=False)]
    return ", ".join(shown) + (f" and {len(codes) - LISTED} more" if len(codes) > LISTED else "")


def _colour_fix(packed: np.ndarray, lossy: bool) -> str:
    """A colour map of what was found, the most frequent colour as background."""
    codes, counts = np.unique(packed, return_counts=True)
    if lossy or len(codes) > LISTED:
        return "write the mask with few exact colours (PNG, no smoothing), then name them with --label-map"
    ranked = codes[np.argsort(-counts, kind="stable")]
    parts = [f"{_written(code, True)}={f'class{n}' if n else BACKGROUND}" for n, code in enumerate(ranked)]
    return f"name the colours: --label-map '{','.join(parts)}'"

"""The label map: which value or colour of a mask file is which class. Nothing is guessed from the pixels."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Num, UInt8

from nissl.errors import DataError, InputError
from nissl.imageio.formats import LOSSY, Raster, suffix

MANY = 8
LISTED = 10


@dataclass(frozen=True)
class LabelMap:
    """Class names, in the order of their index, and the codes that stand for them.

    A code is a pixel value, or a colour packed as 0xRRGGBB where `colours` is set. Without codes the map is binary:
    0 is background and everything else is foreground.
    """

    names: tuple[str, ...]
    codes: tuple[tuple[int, int], ...] = ()
    """Pairs of code and class index."""
    colours: bool = False

    def __str__(self) -> str:
        """The text that `parse` reads."""
        if not self.codes:
            return "binary"
        return ",".join(f"{_written(code, self.colours)}={self.names[index]}" for code, index in self.codes)

    @classmethod
    def of(cls, pairs: Sequence[tuple[int, str]], colours: bool = False) -> "LabelMap":
        """Make a map from codes and names; codes of one name share a class, the first name is the background."""
        names = tuple(dict.fromkeys(name for _, name in pairs))
        return cls(names, tuple((code, names.index(name)) for code, name in pairs), colours)

    @classmethod
    def parse(cls, text: str) -> "LabelMap":
        """Read `binary`, `0,1,2`, `0=background,255=gland` or `#000000=background,#ff0000=gland`.

        The first name is class 0, the background; several codes may carry one name. In `0,1,2` the first class is
        named background and the others by their value.

        Raises:
            InputError: a part cannot be read, a code occurs twice, or there are fewer than two or over 256 classes.

        """
        if text.strip() == "binary":
            return cls(("background", "foreground"))
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
            pairs.append((code, name or (str(value or "#" + colour) if pairs else "background")))
        label_map = cls.of(pairs, colours=True in kinds)
        if len(kinds) > 1:
            raise _refused(f"values and colours together in `{text}`")
        if not 2 <= len(label_map.names) <= 256:
            raise _refused(f"{len(label_map.names)} classes in `{text}`")
        return label_map

    def apply(self, raster: Raster, path: Path, alias: str | None = None) -> UInt8[np.ndarray, "*space"]:
        """Class of each pixel of a mask; a colour map reads palettes and gray values as colours.

        With an `alias`, errors call the mask by it.

        Raises:
            DataError: the mask holds values that are not in the map, several channels, or numbers that are no labels.

        """
        try:
            return self._classes(raster, path)
        except DataError as error:
            raise DataError(alias or path, error.found, error.expected, error.fix) from None

    def _classes(self, raster: Raster, path: Path) -> UInt8[np.ndarray, "*space"]:
        values = self._values(raster, path)
        if not self.codes:
            if suffix(path) in LOSSY and len(np.unique(values)) > 2:
                raise self._unexpected(values, np.ones(values.shape, bool), raster, path)
            return np.asarray(values != 0, np.uint8)
        labels = np.zeros(values.shape, np.uint8)
        known = np.zeros(values.shape, bool)
        for code, index in self.codes:
            hit = values == code
            known |= hit
            if index:
                labels[hit] = index
        if not known.all():
            raise self._unexpected(values, ~known, raster, path)
        return labels

    def _values(self, raster: Raster, path: Path) -> Num[np.ndarray, "*space"]:
        """The pixels as one code each."""
        pixels = raster.pixels
        if raster.inverted:
            found, fix = "a mask that shows 0 as white (MONOCHROME1)", "write the mask as MONOCHROME2, PNG or NIfTI"
            raise DataError(path, found, "class numbers as they are stored", fix)
        if self.colours:
            packed = _packed(raster)
            if packed is None:
                found = f"{len(pixels)} channels of {pixels.dtype}"
                raise DataError(path, found, "an 8-bit RGB, gray or palette mask", "write the mask as 8-bit RGB PNG")
            return packed
        if len(pixels) > 1 and not (pixels == pixels[:1]).all():
            packed = _packed(raster)
            if packed is None:
                found, fix = f"a mask of {len(pixels)} channels", "write the mask with one channel of class numbers"
            else:
                codes, counts = _counted(packed)
                found = f"an RGB mask with the colours {_listed(codes, counts, colours=True)}"
                fix = _colour_fix(codes, counts, path)
            raise DataError(path, found, f"one channel of values ({self})", fix)
        values: Num[np.ndarray, "*space"] = pixels[0]
        if values.dtype.kind == "f" and not (np.isfinite(values).all() and (values == np.rint(values)).all()):
            broken = int((~np.isfinite(values)).sum())
            odd = values[np.isfinite(values) & (values != np.rint(values))]
            parts = [f"NaN or infinity ({broken} pixels)"] if broken else []
            parts += [f"fractions such as {odd[0]:g} ({odd.size} pixels)"] if odd.size else []
            fix = "set these pixels to a class" if broken else "threshold the probabilities, or save without smoothing"
            raise DataError(path, " and ".join(parts), f"whole numbers ({self})", f"{fix}, then write the mask again")
        return values

    def _unexpected(self, values: np.ndarray, bad: np.ndarray, raster: Raster, path: Path) -> DataError:
        everything = _counted(values)[0]
        codes, counts = _counted(values[bad])
        found = f"unexpected values {_listed(codes, counts, self.colours)}"
        expected = f"0 and one other value ({self})" if not self.codes else f"only the values of the label map ({self})"
        if suffix(path) in LOSSY:
            fix = "JPEG is lossy and changes values at edges: export the mask again as PNG or TIFF"
        elif self.colours or raster.palette is not None:
            packed = _packed(raster)
            fix = "write the mask as 8-bit RGB PNG" if packed is None else _colour_fix(*_counted(packed), path)
        elif len(everything) == 2 and everything[0] == 0:
            fix = "if 0 is background and the other value is foreground, add `--label-map binary`"
        elif len(everything) > MANY:
            fix = "if these are instance ids, add `--label-map binary`; else correct the mask"
        else:
            classes = ",".join(str(int(code)) for code in everything)
            fix = (
                f"if these are instance ids, add `--label-map binary`; if each value is a class, add "
                f"`--label-map {classes}`; else correct the mask"
            )
        return DataError(path, found, expected, fix)


def default_map(dataset_json: Path | None) -> LabelMap:
    """The map used when none is given: the labels of a Decathlon dataset.json, else the values 0 and 1.

    Raises:
        DataError: dataset.json cannot be read or holds no labels.

    """
    if dataset_json is None:
        return LabelMap.of(((0, "background"), (1, "foreground")))
    try:
        labels = json.loads(dataset_json.read_text(encoding="utf-8"))["labels"]
        # The Decathlon writes value: name, its successors name: value.
        pairs = [(int(key), str(name)) if str(key).isdigit() else (int(name), str(key)) for key, name in labels.items()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            dataset_json,
            f"no `labels` that can be read ({type(error).__name__}: {error})",
            '"labels": {"0": "background", "1": "..."}',
            "correct the file, or state the classes with --label-map",
        ) from error
    if len({name for _, name in pairs}) < 2:
        raise DataError(dataset_json, f"labels {labels}", "two classes or more", "correct it, or use --label-map")
    return LabelMap.of(sorted(pairs))


def _refused(found: str) -> InputError:
    return InputError(
        "--label-map",
        found,
        "`binary`, values `0,1,2` or `0=background,255=gland`, or colours `#000000=background,#ff0000=gland`",
        "correct the part that is named; each value once, two classes or more, the background first",
        "label-map",
    )


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


def _counted(values: np.ndarray) -> tuple[list[float], list[int]]:
    codes, counts = np.unique(values, return_counts=True)
    return codes.tolist(), counts.tolist()


def _written(code: float, colours: bool) -> str:
    return f"#{int(code):06x}" if colours else f"{code:g}" if isinstance(code, float) else str(code)


def _listed(codes: list[float], counts: list[int], colours: bool) -> str:
    """The first codes with their counts: `3 (120 pixels), 4 (7 pixels) and 5 more`."""
    shown = [
        f"{_written(code, colours)} ({count} pixels)"
        for code, count in zip(codes[:LISTED], counts[:LISTED], strict=True)
    ]
    rest = f" and {len(codes) - LISTED} more" if len(codes) > LISTED else ""
    return ", ".join(shown) + rest


def _colour_fix(codes: list[float], counts: list[int], path: Path) -> str:
    """A colour map of what was found, the most frequent colour as background."""
    if suffix(path) in LOSSY or len(codes) > LISTED:
        return "write the mask with few exact colours (PNG, no smoothing), then name them with --label-map"
    ranked = sorted(zip(codes, counts, strict=True), key=lambda pair: -pair[1])
    parts = [f"{_written(code, True)}={'background' if n == 0 else f'class{n}'}" for n, (code, _) in enumerate(ranked)]
    return f"name the colours: --label-map '{','.join(parts)}'"

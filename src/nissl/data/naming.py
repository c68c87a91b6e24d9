"""What a file is called in ids, errors and outputs: by its name, or by a pseudonym in a folder that holds DICOM.

The name of a DICOM file is often that of the patient, or an identifier that leads to them, and so is the name of the
mask beside it. A pseudonym follows from the name alone, so that no test file has to be opened for it; it is no secret
to somebody who knows the name.
"""

import hashlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

from nissl.imageio import dicom
from nissl.imageio.formats import is_dicom, plain_name, stem, suffix

DATA_FOLDER = "the data folder"
"""What a folder with DICOM in it is called."""
KIND = re.compile(r"\.[A-Za-z]\w{0,4}|\.geojson")
"""Suffixes that may be shown: DICOM files without one end in a part of an identifier."""
LITTER = ("thumbs.db", "desktop.ini", "__macosx", "cases.csv")
"""Neither images nor left out: what systems leave behind, and the table, which `nissl.data.table` finds."""


def pseudonym(name: str, kind: str = "dicom") -> str:
    """`dicom-` and ten hexadecimal digits; upper and lower case count as equal."""
    plain = unicodedata.normalize("NFC", name).casefold()
    return f"{kind}-{hashlib.blake2b(plain.encode(errors='surrogateescape'), digest_size=5).hexdigest()}"


@lru_cache(2**17)
def spelling(name: str) -> tuple[str, ...]:
    """The words and numbers of a name: equal for `Case-01`, `case_1` and `CASE 1`, which differ in writing alone."""
    plain = unicodedata.normalize("NFKC", name).casefold()
    return tuple(part.lstrip("0") or "0" for part in re.findall(r"\d+|[^\W\d_]+", plain))


def suggest(name: str, known: Iterable[str]) -> str:
    """`did you mean ...?` for the one known name that differs in writing alone; empty where there is none.

    Names that are merely alike are not suggested: they are those of another patient.
    """
    same = [other for other in known if spelling(other) == spelling(name)]
    return f"did you mean `{same[0]}`?" if len(same) == 1 else ""


def core(name: str, pattern: str) -> str | None:
    """What `*` stands for where a name fits a pattern such as `*_mask`; None where it does not fit."""
    start, end = pattern.split("*")
    fits = len(name) > len(start + end) and name.startswith(start) and name.endswith(end)
    return name[len(start) : len(name) - len(end)] if fits else None


@dataclass(frozen=True)
class Listing:
    """Images or masks of one folder, sorted by name: files of a known kind, and subfolders of DICOM slices."""

    folder: Path
    """Where they lie, or the single file."""
    paths: tuple[Path, ...]
    others: tuple[Path, ...]
    """Files of no known kind."""
    private: bool
    """Whether names must not be shown."""
    folders: tuple[Path, ...] = ()
    """Subfolders, which are not read."""
    pattern: str = "*"
    """What the names are made of, `*` being the id."""
    unfit: tuple[Path, ...] = ()
    """Files of a known kind whose names do not fit the pattern."""

    def id(self, path: Path) -> str:
        """What a file is called in outputs: its name without suffix, or its pseudonym."""
        name = core(stem(path), self.pattern) or stem(path)
        return pseudonym(name) if self.private else name

    def alias(self, path: Path) -> str | None:
        """What errors call a file in place of its path; None where the path may be shown."""
        return f"{self.id(path)} ({self.position(path)})" if self.private else None

    def position(self, path: Path) -> str:
        """Place of a file among those of its folder."""
        return f"file {self._numbers[path]} of {len(self.paths)} by name"

    @cached_property
    def _numbers(self) -> dict[Path, int]:
        return {path: number for number, path in enumerate(self.paths, start=1)}

    def example(self, path: Path) -> str:
        """`, such as NAME`, for findings on several files; empty where names must not be shown."""
        return "" if self.private else f", such as {plain_name(path.name)}"

    @property
    def place(self) -> str:
        """What findings call the folder."""
        return DATA_FOLDER if self.private else str(self.folder)

    @cached_property
    def left_out(self) -> str:
        """What lies there and is not read, such as `2 files of another kind (.gif); 1 subfolder with 5 images`."""
        parts = []
        if self.others:
            kinds = " ".join(sorted({path.suffix.lower() for path in self.others if KIND.fullmatch(path.suffix)}))
            kinds = f" ({kinds})" if kinds and not self.private else ""
            parts.append(f"{counted(len(self.others), 'file')} of another kind{kinds}{self.example(self.others[0])}")
        if self.unfit:
            parts.append(f"{counted(len(self.unfit), 'file')} whose names do not fit `{self.pattern}`")
        if self.folders:
            files = (path for folder in self.folders for path in folder.rglob("[!.]*"))
            inside = sum(bool(suffix(path)) for path in files)
            parts.append(f"{counted(len(self.folders), 'subfolder')} with {counted(inside, 'image')}")
        return "; ".join(parts)

    def called(self, path: Path) -> str:
        """What records call a file: its name, or its pseudonym, with a number where several have the same."""
        if not self.private:
            return plain_name(path.name)
        name = self.id(path)
        return f"{name}-file{self._numbers[path]}" if self._ids[name] > 1 else name

    @cached_property
    def _ids(self) -> Counter[str]:
        return Counter(map(self.id, self.paths))


def list_files(folder: Path, pattern: str = "*") -> Listing:
    """List a folder, or a single file, by names alone; hidden files and `LITTER` are left out."""
    entries = sorted(folder.iterdir()) if folder.is_dir() else [folder] if folder.exists() else []
    visible = [path for path in entries if not path.name.startswith(".") and path.name.lower() not in LITTER]
    known = [path for path in visible if dicom.is_series(path) or (suffix(path) and not path.is_dir())]
    paths = tuple(path for path in known if core(stem(path), pattern) is not None)
    rest = sorted(set(visible) - set(known))
    others, folders = (tuple(path for path in rest if path.is_dir() is wanted) for wanted in (False, True))
    unfit = tuple(sorted(set(known) - set(paths)))
    return Listing(folder, paths, others, any(map(is_dicom, known)), folders, pattern, unfit)


def counted(count: int, what: str) -> str:
    """`1 file`, `2 files`."""
    return f"{count} {what}{'' if count == 1 else 's'}"

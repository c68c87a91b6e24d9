"""What a file is called in ids, errors and outputs: by its name, or by a pseudonym in a folder that holds DICOM.

The name of a DICOM file is often that of the patient, or an identifier that leads to them, and so is the name of the
mask beside it. A pseudonym follows from the name alone, so that no test file has to be opened for it; it is no secret
to somebody who knows the name.
"""

import hashlib
import unicodedata
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from nissl.imageio import dicom
from nissl.imageio.formats import stem, suffix

DATA_FOLDER = "the data folder"
"""What a folder with DICOM in it is called."""


def pseudonym(name: str, kind: str = "dicom") -> str:
    """`dicom-` and ten hexadecimal digits; upper and lower case count as equal."""
    plain = unicodedata.normalize("NFC", name).casefold()
    return f"{kind}-{hashlib.blake2b(plain.encode(errors='surrogateescape'), digest_size=5).hexdigest()}"


@dataclass(frozen=True)
class Listing:
    """Images or masks of one folder, sorted by name: files of a known kind, and subfolders of DICOM slices."""

    paths: tuple[Path, ...]
    others: tuple[Path, ...]
    """Files of no known kind."""
    private: bool
    """Whether names must not be shown."""

    def id(self, path: Path) -> str:
        """What a file is called in outputs: its name without suffix, or its pseudonym."""
        return pseudonym(stem(path)) if self.private else stem(path)

    def alias(self, path: Path) -> str | None:
        """What errors call a file in place of its path; None where the path may be shown."""
        if not self.private:
            return None
        return f"{self.id(path)} ({self.position(path)})"

    def position(self, path: Path) -> str:
        """Place of a file among those of its folder."""
        return f"file {self._numbers[path]} of {len(self.paths)} by name"

    @cached_property
    def _numbers(self) -> dict[Path, int]:
        return {path: number for number, path in enumerate(self.paths, start=1)}

    def called(self, path: Path) -> str:
        """What records call a file: its name, or its pseudonym, with a number where several have the same."""
        if not self.private:
            return path.name
        name = self.id(path)
        return f"{name}-file{self._numbers[path]}" if self._ids[name] > 1 else name

    @cached_property
    def _ids(self) -> Counter[str]:
        return Counter(map(self.id, self.paths))


def list_files(folder: Path) -> Listing:
    """List a folder, or a single file, by names alone; hidden files are left out."""
    entries = sorted(folder.iterdir()) if folder.is_dir() else [folder] if folder.exists() else []
    visible = [path for path in entries if not path.name.startswith(".")]
    paths = tuple(path for path in visible if dicom.is_series(path) or (suffix(path) and not path.is_dir()))
    known = set(paths)
    others = tuple(path for path in visible if path not in known and not path.is_dir())
    return Listing(paths, others, any(map(is_dicom, paths)))


def is_dicom(path: Path) -> bool:
    """Whether a path is a DICOM file or a series of them, by names alone."""
    return suffix(path) in dicom.SUFFIXES or dicom.is_series(path)

"""Which files in a folder are images, and what is left out."""

import os
from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from PIL import Image

from cktf.data.image_decoding import MISSING_DECODERS, register_heif
from cktf.data.split_loading import abbreviate

# Folders of operating systems and network drives; they hold thumbnails and deleted images.
_SYSTEM_FOLDERS = {
    "@eadir", "@recently-snapshot", "@recycle", "@tmp", "#recycle", "#snapshot", "$recycle.bin",
    "__macosx", "__pycache__", "lost+found", "system volume information",
}  # fmt: skip


@dataclass
class LeftOut:
    """Contents of a folder that are not used.

    Attributes:
        extensions: number of other files, by extension.
        hidden: number of images in hidden and system folders by the folder's name, and of hidden
            images.
        folders: folders beside the training folder.
        loose_images: number of images outside of class folders.
    """

    extensions: Counter[str] = field(default_factory=Counter)
    hidden: Counter[str] = field(default_factory=Counter)
    folders: list[str] = field(default_factory=list)
    loose_images: int = 0

    def count_hidden(self, parent: str | Path, folders: list[str], names: list[str]) -> None:
        """Count the images in hidden folders, and hidden images."""
        for folder in filter(_is_hidden, folders):
            walked = os.walk(Path(parent, folder))
            count = sum(is_image(name.lstrip(".")) for _, _, found in walked for name in found)
            self.hidden.update({f"in {folder}": count} if count else {})
        hidden = sum(n.startswith(".") and is_image(n.lstrip(".")) for n in names)
        self.hidden.update({"with a hidden name": hidden} if hidden else {})

    def notes(self) -> list[str]:
        """Sentences for the log."""
        notes = []
        if self.folders:
            notes.append(f"left out beside train: {abbreviate(self.folders)}")
        if self.loose_images:
            notes.append(f"left out: {self.loose_images:,} images outside of class folders")
        if self.hidden:
            places = [f"{count:,} {place}" for place, count in sorted(self.hidden.items())]
            notes.append(f"hidden or system images left out: {abbreviate(places)}")
        if self.extensions:
            counts = [f"{count:,} {kind}" for kind, count in self.extensions.most_common()]
            notes.append(f"no images: {abbreviate(counts)}")
        if advice := self.advice():
            notes.append(advice.rstrip(". "))
        return notes

    def advice(self) -> str:
        """Advice to install what reads files that are images; empty without such files."""
        kinds = [kind for kind in self.extensions if kind in MISSING_DECODERS]
        return "".join(
            f"{self.extensions[kind]:,} {kind} can be read after {MISSING_DECODERS[kind]}. "
            for kind in kinds
        )


def list_folders(folder: Path) -> list[Path]:
    """The folders in a folder, sorted, without hidden and system folders."""
    return sorted(p for p in folder.iterdir() if p.is_dir() and not _is_hidden(p.name))


def list_images(folder: Path, left_out: LeftOut) -> list[Path]:
    """All images in a folder and its subfolders, sorted; `left_out` counts what else is there."""
    files: list[Path] = []
    visited: set[str] = set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        real_path = os.path.realpath(parent)
        if real_path in visited:  # a symbolic link that leads back
            folders.clear()
            continue
        visited.add(real_path)
        left_out.count_hidden(parent, folders, names)
        folders[:] = sorted(name for name in folders if not _is_hidden(name))
        names = sorted(name for name in names if not _is_hidden(name))
        files += [Path(parent, name) for name in names if is_image(name)]
        others = (_extension(name) for name in names if not is_image(name))
        left_out.extensions.update(extension or "without an extension" for extension in others)
    return files


def _is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden, or one that a system makes beside images."""
    return name.startswith(".") or name.casefold() in _SYSTEM_FOLDERS


@cache
def _image_extensions() -> frozenset[str]:
    register_heif()
    formats = Image.registered_extensions()
    return frozenset(extension for extension, kind in formats.items() if kind in Image.OPEN)


def _extension(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def is_image(name: str) -> bool:
    """Whether a file is an image by the end of its name, and not hidden."""
    return not name.startswith(".") and _extension(name) in _image_extensions()

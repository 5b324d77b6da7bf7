# Copyright 2026 The FusionMatch team. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Finding a row's pictures on disk and proving that they decode."""

import io
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import xxhash
from datasets.utils import tqdm
from PIL import ExifTags, Image, ImageOps

from .duplicates import picture_hash


NOT_NAMED = "no picture is named"
MISSING = "picture file is missing"
OUTSIDE = "picture lies outside the catalogue folder"
UNREADABLE = "picture cannot be read"
TOO_LARGE = "picture is too large to decode safely"
URL = "URL: not downloaded without download_images (--download_images True)"

# What is worth a look in a picture that can be used.
SMALLEST_SIDE = 32
TINY = f"picture is tiny (a side below {SMALLEST_SIDE} pixels)"
BLANK = "picture is blank (one colour)"
ANIMATED = "picture is animated; its first frame is used"
DEEP = "picture has 16 bits a channel and may turn white; save it with 8"
FOR_PRINT = "colours are for print (CMYK); they are converted"
TURNED = "picture lies on its side or head; it is turned as its camera says"
# Of 255; what is left of one colour after JPEG.
_BLANK_RANGE = 8

_URL = re.compile(r"^[a-z][a-z0-9+.-]+://", re.IGNORECASE)
_WORKERS = min(8, os.cpu_count() or 1)
_BATCH = 256


class Checked(NamedTuple):
    """
    What decoding a picture told: the digest of its bytes, what is the same in a copy that was saved again
    ([`picture_hash`]), the reason and detail when it cannot be used, and what is worth a look when it can.
    """

    digest: str
    reason: str | None = None
    detail: str | None = None
    hash: bytes = b""
    notes: tuple[str, ...] = ()


class Found(NamedTuple):
    """Where a cell of the picture column points: a file, or the reason and detail why there is none."""

    path: Path | None
    reason: str | None = None
    detail: str | None = None


def is_url(cell: str | None) -> bool:
    """Whether a picture cell names something on the network, of whatever scheme."""
    return cell is not None and _URL.match(cell) is not None


def find_picture(cell: str, folders: Sequence[Path]) -> Found:
    """
    Resolves a picture cell to a file inside one of the folders.

    Links are followed before the check, so neither `..`, nor an absolute path, nor a symbolic link leads out.

    Args:
        cell (`str`): What the catalogue says, relative to one of the folders or absolute inside one.
        folders (`Sequence[Path]`): Resolved folders the pictures may lie in, tried in this order.
    """
    if is_url(cell):
        return Found(None, URL)
    # Catalogues exported on Windows name their pictures with backslashes.
    names = [cell] if "\\" not in cell or os.sep == "\\" else [cell, cell.replace("\\", "/")]
    inside = None
    for name in names:
        for folder in folders:
            try:
                path = (folder / name).resolve()
                if any(path.is_relative_to(allowed) for allowed in folders):
                    inside = inside or path
                    if path.is_file():
                        return Found(path)
            except (OSError, RuntimeError, ValueError):  # name too long, loop of links, null character
                return Found(None, MISSING)
    return Found(inside, MISSING if inside else OUTSIDE)


def check_bytes(data: Any) -> Checked:
    """Decodes one picture, given as anything that holds bytes, to the end."""
    digest = xxhash.xxh3_128_hexdigest(data)
    try:
        with Image.open(io.BytesIO(data)) as picture:
            if picture.format == "EPS":  # decoding it would run Ghostscript on whatever program it holds
                return Checked(digest, UNREADABLE, "PostScript is not decoded; save the picture as PNG or JPEG")
            picture.load()
            notes = [
                note
                for note, found in (
                    (TINY, min(picture.size) < SMALLEST_SIDE),
                    # Of the frames of MPO, which phones write, the others are the same shot again.
                    (ANIMATED, getattr(picture, "is_animated", False) and picture.format != "MPO"),
                    (DEEP, picture.mode.startswith(("I", "F"))),
                    (FOR_PRINT, picture.mode == "CMYK"),
                    (TURNED, picture.getexif().get(ExifTags.Base.Orientation) in range(2, 9)),
                )
                if found
            ]
            # What `datasets` does when the picture is looked at: a damaged EXIF block must show now, not in training.
            if picture.getexif().get(ExifTags.Base.Orientation) is not None:
                picture = ImageOps.exif_transpose(picture)
            if picture.mode != "RGB":  # else it would be copied
                picture = picture.convert("RGB")
            if all(high - low <= _BLANK_RANGE for low, high in picture.getextrema()):
                notes.append(BLANK)
            return Checked(digest, hash=picture_hash(picture), notes=tuple(notes))
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        return Checked(digest, TOO_LARGE, str(error))
    except Exception as error:  # noqa: BLE001 - damaged bytes make decoders raise nearly anything
        # The address of the buffer would make two runs over the same file differ.
        return Checked(digest, UNREADABLE, re.sub(r"<_io\.BytesIO object at \w+>", "these bytes", str(error)))


def _check_file(path: str | Path) -> Checked:
    try:
        return check_bytes(Path(path).read_bytes())
    except OSError as error:
        return Checked("", UNREADABLE, error.strerror)


def _check_stored(picture: Any, follow_paths: bool) -> Checked:
    if not picture.is_valid:
        return Checked("", NOT_NAMED)
    data, path = picture["bytes"], picture["path"].as_py()
    if data.is_valid:
        return check_bytes(data.as_buffer())
    return _check_file(path) if path and follow_paths else Checked("", NOT_NAMED)


def _check_all(check: Callable[[Any], Checked], batches: Iterable[Sequence[Any]], total: int) -> Iterator[Checked]:
    # Filters are global to the process and not safe to change in a thread, so they are set around the whole pool.
    with (
        warnings.catch_warnings(),
        ThreadPoolExecutor(_WORKERS) as pool,
        tqdm(total=total, desc="Checking pictures", unit=" pictures") as progress,
    ):
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        for batch in batches:
            yield from pool.map(check, batch)
            progress.update(len(batch))


def check_files(paths: Sequence[str | Path]) -> Iterator[Checked]:
    """Decodes files in a pool of threads, in their order."""
    batches = (paths[start : start + _BATCH] for start in range(0, len(paths), _BATCH))
    return _check_all(_check_file, batches, len(paths))


def check_stored(pictures: datasets.Dataset, follow_paths: bool = False) -> Iterator[Checked]:
    """
    Decodes every picture of a dataset's `image` column, batch by batch, so that few are in memory at a time.

    Args:
        pictures (`datasets.Dataset`): Its `image` column is of type [`datasets.Image`].
        follow_paths (`bool`, *optional*, defaults to `False`): Whether to open the file where a row holds a path in
            place of bytes. Meant for `datasets`' own cache; a Parquet file from elsewhere may point anywhere.
    """
    check = partial(_check_stored, follow_paths=follow_paths)
    rows = pictures.with_format("arrow")
    batches = (list(table["image"]) for table in rows.iter(batch_size=_BATCH))
    return _check_all(check, batches, len(pictures))

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
"""Which pictures and which texts of a catalogue are the same to a person, though their bytes differ."""

import html
import unicodedata
from collections.abc import Hashable, Iterable, Iterator, Sequence
from itertools import chain

import imagehash
import numpy as np
import pandas as pd
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components


# Of 256 bits; copies saved again (JPEG of quality 70, WebP, 0.6 times as large) differ in at most 12.
_HASH_SIZE = 16
MAX_BITS = 12
# A perceptual hash does not see colours, by which variants of a product differ. So no cell of 64 may differ by more
# than 12 of 255 in a channel (copies: at most 9). In a picture with little contrast the hash says little and copies
# differ less: two plain colours are not the same for being near.
_CELLS = 8
MAX_COLOR = 12
_CONTRAST_SHARE = 8
# Of two hashes that differ in 12 bits, one of 13 parts is the same (pigeonhole): only such pairs are compared.
_PARTS = MAX_BITS + 1
# Pairs compared at a time, for memory.
_PIECE = 50_000


def picture_hash(picture: Image.Image) -> bytes:
    """
    What stays of a picture when it is saved again: a perceptual hash of its brightness (DCT, the library ImageHash),
    32 bytes, and the mean colours of 64 cells, 192 bytes.
    """
    if picture.mode != "RGB":  # else it would be copied
        picture = picture.convert("RGB")
    bits = imagehash.phash(picture, hash_size=_HASH_SIZE).hash
    return np.packbits(bits).tobytes() + picture.resize((_CELLS, _CELLS), Image.Resampling.BOX).tobytes()


def group_pictures(hashes: Sequence[bytes]) -> list[int]:
    """
    Groups pictures that are copies of each other, saved again or not. Time grows with the number of pairs that are
    alike in a thirteenth of their hash: few where pictures differ, all of them where they hardly do.

    Args:
        hashes (`Sequence[bytes]`): [`picture_hash`] of each.

    Returns:
        `list[int]`: for each picture the first one of its group, itself where it has no copy.
    """
    if not hashes:
        return []
    known: dict[bytes, int] = {}
    index = [known.setdefault(row, len(known)) for row in hashes]
    different = np.frombuffer(b"".join(known), np.uint8).reshape(len(known), -1)
    bits = different[:, : _HASH_SIZE**2 // 8].copy().view(np.uint64)
    cells = different[:, _HASH_SIZE**2 // 8 :]
    pieces = (cells[start : start + _PIECE] for start in range(0, len(cells), _PIECE))
    contrast = np.concatenate([np.ptp(piece.reshape(len(piece), -1, 3), axis=1).max(axis=1) for piece in pieces])
    tolerance = np.minimum(MAX_COLOR, contrast // _CONTRAST_SHARE)
    # Plain colours have much the same hash, all of them, and no copy but of the very same cells.
    plain, others = np.flatnonzero(tolerance == 0), np.flatnonzero(tolerance)
    colours = pd.factorize(np.ascontiguousarray(cells[plain]).view(f"V{cells.shape[1]}").ravel().astype(object))[0]
    hashed = different[:, : _HASH_SIZE**2 // 8]
    parts = (_part(hashed, others, part) for part in range(_PARTS))
    pairs = [np.empty((2, 0), np.int64)]
    for rows, candidates in chain(((plain, c) for c in _alike([colours])), ((others, c) for c in _alike(parts))):
        pieces = (np.array_split(rows[side], -(-len(side) // _PIECE)) for side in candidates)
        for first, second in zip(*pieces, strict=True):
            distance = np.bitwise_count(bits[first] ^ bits[second]).sum(axis=1, dtype=np.uint16)
            near = distance <= MAX_BITS
            first, second = first[near], second[near]
            # The smaller one of both: a plain colour has no copy but itself, whichever row comes first.
            allowed = np.minimum(tolerance[first], tolerance[second])
            apart = np.abs(cells[first].astype(np.int16) - cells[second]).max(axis=1, initial=0)
            close = apart <= allowed
            pairs.append(np.stack([first[close], second[close]]))
    first, second = np.concatenate(pairs, axis=1)
    count = len(different)
    _, component = connected_components(
        coo_array((np.ones(len(first), bool), (first, second)), (count, count)), directed=False
    )
    leader: dict[int, int] = {}
    return [leader.setdefault(group, row) for row, group in enumerate(component[index].tolist())]


def _alike(columns: Iterable[np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """
    Pairs of rows that have a number in one of the columns in common, each pair once; a column and a distance in its
    order at a time.
    """
    earlier: list[np.ndarray] = []
    for keys in columns:
        order = np.argsort(keys, kind="stable")
        ordered = keys[order]
        start, step = np.arange(len(keys)), 0
        while True:
            step += 1
            start = start[start + step < len(keys)]
            start = start[ordered[start + step] == ordered[start]]
            if not len(start):
                break
            first, second = order[start], order[start + step]
            met = np.zeros(len(first), bool)
            for other in earlier:
                met |= other[first] == other[second]
            if not met.all():
                yield first[~met], second[~met]
        earlier.append(keys)


def _part(hashes: np.ndarray, rows: np.ndarray, part: int) -> np.ndarray:
    keys = [np.empty(0, np.uint32)]
    for start in range(0, len(rows), _PIECE):
        # Every thirteenth bit: neighbours describe the same frequencies and go together.
        bits = np.unpackbits(hashes[rows[start : start + _PIECE]], axis=1)[:, part::_PARTS].astype(np.uint32)
        keys.append(bits @ (1 << np.arange(bits.shape[1], dtype=np.uint32)))
    return np.concatenate(keys)


def connected_rows(names: Iterable[Iterable[Hashable]]) -> list[int]:
    """A number for each row, the same for rows that have a name in common, also by way of other rows."""
    rows, columns, index = [], [], {}
    count = 0
    for count, own in enumerate(names, start=1):
        for name in own:
            rows.append(count - 1)
            columns.append(index.setdefault(name, len(index)))
    size = count + len(index)
    table = coo_array((np.ones(len(rows), bool), (rows, [count + column for column in columns])), (size, size))
    return connected_components(table, directed=False)[1][:count].tolist()


# Punctuation that tells things apart: C# and C, 50 % and 50, t-shirt and -1.5.
_MEANT = "#%&*@/-"


class _Spaced(dict[int, int]):
    """What stands for a letter in a key: itself or a space; looked up once for each."""

    def __missing__(self, letter: int) -> int:
        kept = chr(letter) in _MEANT or unicodedata.category(chr(letter))[0] not in "PZC"
        self[letter] = letter if kept else ord(" ")
        return self[letter]


_SPACED = _Spaced()


def text_key(text: str) -> str:
    """
    What two texts have in common that differ only in case, spaces, width of letters, HTML entities, and full stops,
    commas and the like.

    Not more: a text that differs in one word may differ in the colour.
    """
    plain = unicodedata.normalize("NFKC", html.unescape(text)).casefold()
    return " ".join(word for word in plain.translate(_SPACED).split() if word != "-") or plain

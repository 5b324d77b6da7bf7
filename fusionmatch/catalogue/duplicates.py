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
from itertools import chain, count

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
_PART_BITS = -(-(_HASH_SIZE**2) // _PARTS)
# Rows and pairs at a time, for memory.
_PIECE = 50_000
# Rows that are rather compared than split further.
_FEW = 64
# Of the pairs, what a split may leave: below, the rows that it has in both halves cost more than it saves.
_LEFT = 0.8
# Rows that each is compared with before those are left out which belong together by then.
_FIRST = 4


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
    alike in a thirteenth of their hash and in most colours, and do not belong together by way of others yet: few where
    pictures differ, be it in their colours alone.

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
    groups = _Groups(len(different))
    near_colours = (
        (rows, (_part(hashed, rows, part) | sets << _PART_BITS for part in range(_PARTS)))
        for rows, sets in _near_colours(cells, others)
    )
    for rows, columns in chain([(plain, [colours])], near_colours):
        for candidates in _alike(rows, columns, groups):
            pieces = (np.array_split(side, -(-len(side) // _PIECE)) for side in candidates)
            for first, second in zip(*pieces, strict=True):
                new = groups.names[first] != groups.names[second]
                first, second = first[new], second[new]
                distance = np.bitwise_count(bits[first] ^ bits[second]).sum(axis=1, dtype=np.uint16)
                near = distance <= MAX_BITS
                first, second = first[near], second[near]
                # The smaller one of both: a plain colour has no copy but itself, whichever row comes first.
                allowed = np.minimum(tolerance[first], tolerance[second])
                one, other = cells[first], cells[second]
                apart = (np.maximum(one, other) - np.minimum(one, other)).max(axis=1, initial=0)
                close = apart <= allowed
                groups.join(first[close], second[close])
    groups.settle()
    leader: dict[int, int] = {}
    return [leader.setdefault(group, row) for row, group in enumerate(groups.names[index].tolist())]


class _Groups:
    """Which rows belong together, by way of others too: those of one name, once they are settled."""

    def __init__(self, number: int) -> None:
        self.names = np.arange(number)
        self._pairs: list[np.ndarray] = []
        self._held = 0

    def join(self, first: np.ndarray, second: np.ndarray) -> None:
        self._pairs.append(np.stack([first, second]))
        self._held += len(first)
        if self._held > len(self.names):  # a picture and its many copies would have too many pairs to hold
            self.settle()

    def settle(self) -> None:
        if self._held:
            first, second = self.names[np.concatenate(self._pairs, axis=1)]
            table = coo_array((np.ones(len(first), bool), (first, second)), (len(self.names),) * 2)
            self.names = connected_components(table, directed=False)[1][self.names]
            self._pairs, self._held = [], 0


def _near_colours(cells: np.ndarray, rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """
    Sets such that any two rows whose colours are near are together in one: rows, some of them several times, and the
    number of the set of each; some sets at a time.

    Rows are split at a value of the cell in which they differ most; both halves have what lies just above it.
    """
    generator = np.random.default_rng(0)  # what it draws decides on the time alone
    waiting, done, held = [rows], [], 0
    while waiting:
        rows = waiting.pop()
        if len(rows) > _FEW:
            sample = cells[generator.choice(rows, 64)]
            values = cells[rows, sample.std(axis=0, dtype=np.float32).argmax()]
            up_to = np.bincount(values, minlength=256).cumsum()
            lower, upper = up_to[np.minimum(np.arange(256) + MAX_COLOR, 255)], len(rows) - up_to
            pairs = lower**2 + upper**2
            cut = pairs.argmin()
            if pairs[cut] < _LEFT * len(rows) ** 2:
                waiting += [rows[values <= cut + MAX_COLOR], rows[values > cut]]
                continue
        done.append(rows)
        held += len(rows)
        if not waiting or held > _PIECE:
            yield np.concatenate(done), np.repeat(np.arange(len(done)), [len(own) for own in done])
            done, held = [], 0


def _alike(
    rows: np.ndarray, columns: Iterable[np.ndarray], groups: _Groups
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """
    Pairs of rows that have a number in one of the columns in common and may not belong together yet; a column and a
    distance in its order at a time.
    """
    earlier: list[np.ndarray] = []
    for keys in columns:
        order = np.argsort(keys, kind="stable")
        ordered = keys[order]
        first = np.arange(len(keys))
        second = first + 1
        for step in count():
            if step == _FIRST:
                # Of many copies each is one of its neighbours' by now: they go together, and others are compared.
                groups.settle()
                names = groups.names[rows]
                order = np.lexsort((names, keys))
                ordered = keys[order]
                ends = np.flatnonzero((np.diff(names[order]) != 0) | (np.diff(ordered) != 0)) + 1
                first = np.arange(len(keys))
                second = np.append(ends, len(keys))[np.searchsorted(ends, first, side="right")]
            inside = np.flatnonzero(second < len(keys))
            inside = inside[ordered[second[inside]] == ordered[first[inside]]]
            if not len(inside):
                break
            first, second = first[inside], second[inside]
            one, other = order[first], order[second]
            met = np.zeros(len(one), bool)
            for known in earlier:
                met |= known[one] == known[other]
            if not met.all():
                yield rows[one[~met]], rows[other[~met]]
            second = second + 1
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

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
"""Copies of pictures are found however they were saved; pictures that only look alike are not taken for copies."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fusionmatch.catalogue import duplicates, read_catalogue
from fusionmatch.catalogue.duplicates import group_pictures, picture_hash, text_key
from fusionmatch.catalogue.sample_shop import write_sample_shop


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shop")
    return read_catalogue(write_sample_shop(folder, num_products=80, image_size=160, faults=False)).dataset


def saved(picture, kind, quality, share=1.0):
    buffer = io.BytesIO()
    size = tuple(round(side * share) for side in picture.size)
    picture.convert("RGB").resize(size).save(buffer, kind, quality=quality)
    return Image.open(buffer)


@pytest.mark.parametrize("how", [("JPEG", 70), ("JPEG", 85, 0.6), ("WEBP", 80, 0.8), ("PNG", None)])
def test_copies_saved_again_are_found(shop, how):
    pictures = list(shop["image"])
    hashes = [picture_hash(picture) for picture in pictures]
    groups = group_pictures([*hashes, *(picture_hash(saved(picture, *how)) for picture in pictures)])
    count = len(pictures)
    assert sum(groups[i] == groups[count + i] for i in range(count)) >= 0.98 * count


def test_no_two_products_of_the_shop_are_copies(shop):
    """Things of one shape in colours of their own among them."""
    owners = {}
    for product, group in zip(shop["product"], shop["picture_group"], strict=True):
        assert owners.setdefault(group, product) == product


def test_the_same_drawing_in_another_colour_is_another_picture():
    noise = np.random.default_rng(0).integers(0, 120, (64, 64), dtype=np.uint8)
    rows = [np.stack([noise + 60 * (channel == one) for channel in range(3)], axis=-1) for one in range(3)]
    assert group_pictures([picture_hash(Image.fromarray(row)) for row in rows]) == [0, 1, 2]


def test_plain_colours_are_the_same_only_if_they_are():
    shades = [(200, 30, 30), (201, 30, 30), (200, 30, 30), (30, 200, 30)]
    assert group_pictures([picture_hash(Image.new("RGB", (32, 32), shade)) for shade in shades]) == [0, 1, 0, 3]
    assert group_pictures([]) == []


@given(st.permutations(range(4)))
def test_groups_do_not_depend_on_the_order_of_the_rows(order):
    """A cell is 11 apart: near enough for a contrast of 91, not for one of 80 (an eighth is 10)."""
    plain, lively, other = (bytearray(32 + 192) for _ in range(3))
    plain[32:34], lively[32:34] = (80, 0), (91, 0)
    other[0] = 255
    hashes = [bytes(plain), bytes(lively), bytes(plain), bytes(other)]
    groups = group_pictures([hashes[row] for row in order])
    owners = [{order[at] for at, group in enumerate(groups) if group == first} for first in sorted(set(groups))]
    assert sorted(map(sorted, owners)) == [[0, 2], [1], [3]]


@pytest.mark.parametrize("alike", [1, 2, 13])
def test_a_pair_is_compared_once_however_many_parts_are_alike(alike):
    bits = np.zeros((2, 256), np.uint8)
    bits[1, alike:13] = 1  # bit n is in part n
    hashes = np.packbits(bits, axis=1)
    parts = (duplicates._part(hashes, np.arange(2), part) for part in range(13))
    ((first, second),) = duplicates._alike(np.arange(2), parts, duplicates._Groups(2))
    assert sorted([*first, *second]) == [0, 1]


@pytest.fixture
def compared(monkeypatch):
    numbers = []
    alike = duplicates._alike

    def counted(*args):
        for first, second in alike(*args):
            numbers.append(len(first))
            yield first, second

    monkeypatch.setattr(duplicates, "_alike", counted)
    return numbers


def test_plain_colours_are_not_compared_with_each_other(compared):
    hashes = [picture_hash(Image.new("RGB", (8, 8), (i % 256, i // 256, 0))) for i in range(2000)]
    assert group_pictures([*hashes, hashes[7]]) == [*range(2000), 7]
    assert sum(compared) < 2000


def template(rows, seed, spread, bits=0, one_print=False):
    """Hashes of one picture in other colours: its middle in a colour of each row's own, a print in it in another."""
    generator = np.random.default_rng(seed)
    hashes = np.repeat(generator.integers(0, 2, (1, 256), dtype=np.uint8), rows, axis=0)
    hashes[np.arange(rows)[:, None], generator.integers(0, 256, (rows, bits))] ^= 1
    cells = np.repeat(generator.integers(200, 256, (1, 64, 3)), rows, axis=0)
    cells[:, 10:40] = 100 + generator.integers(-spread, spread + 1, (rows, 1, 3))
    if one_print:
        cells[:, 20:25] = 100 + generator.integers(-spread, spread + 1, (rows, 1, 3))
    cells += generator.integers(-2, 3, cells.shape)
    table = np.concatenate(
        [np.packbits(hashes, axis=1), cells.clip(0, 255).reshape(rows, -1).astype(np.uint8)], axis=1
    )
    return [row.tobytes() for row in table]


def groups_of_all_pairs(hashes):
    """The same by the definition, each row with each."""
    table = np.frombuffer(b"".join(hashes), np.uint8).reshape(len(hashes), -1)
    bits, cells = np.unpackbits(table[:, :32], axis=1).astype(int), table[:, 32:].astype(int)
    colours = cells.reshape(len(cells), 64, 3)
    allowed = np.minimum(12, (colours.max(axis=1) - colours.min(axis=1)).max(axis=1) // 8)
    groups = np.arange(len(hashes))
    for row in range(len(hashes)):
        near = (bits != bits[row]).sum(axis=1) <= 12
        near &= abs(cells - cells[row]).max(axis=1) <= np.minimum(allowed, allowed[row])
        joined = np.isin(groups, groups[near])
        groups[joined] = groups[joined].min()
    return groups.tolist()


@given(st.data())
def test_groups_are_those_of_all_pairs(data):
    hashes = []
    for seed in range(data.draw(st.integers(1, 3))):
        rows = data.draw(st.integers(1, 60))
        spread, bits = data.draw(st.sampled_from([0, 6, 10, 30, 100])), data.draw(st.sampled_from([0, 6, 9]))
        hashes += template(rows, 2 * data.draw(st.integers(0, 99)) + seed, spread, bits, data.draw(st.booleans()))
    hashes += [picture_hash(Image.new("RGB", (8, 8), (shade, 0, 0))) for shade in (7, 8, 7)]
    hashes = data.draw(st.permutations(hashes))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(duplicates, "_FEW", data.draw(st.sampled_from([1, 5, 64])))
        patch.setattr(duplicates, "_PIECE", data.draw(st.sampled_from([7, 50_000])))
        assert group_pictures(hashes) == groups_of_all_pairs(hashes)


@pytest.mark.parametrize("apart", [12, 13])
def test_copies_of_copies_go_together_wherever_colours_are_split(monkeypatch, apart):
    monkeypatch.setattr(duplicates, "_FEW", 1)
    shades = [(row * 7) % 15 * apart for row in range(15)]
    groups = group_pictures([bytes([0] * 35 + [255] * 99 + [shade] * 90) for shade in shades])
    assert groups == ([0] * 15 if apart == 12 else [*range(15)])


@pytest.mark.parametrize(
    ("spread", "bits", "one_print"), [(100, 0, False), (100, 6, True), (30, 5, True), (3, 5, False)]
)
def test_pictures_in_many_colours_are_compared_with_few(compared, spread, bits, one_print):
    hashes = template(1000, 0, spread, bits, one_print)
    groups = group_pictures(hashes)
    assert sum(compared) < 100_000  # of 499,500 pairs
    assert groups == groups_of_all_pairs(hashes)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGBA", "CMYK", "I;16"])
def test_any_mode_and_size(mode):
    assert len(picture_hash(Image.new(mode, (1, 3)))) == 32 + 192


def test_texts_that_differ_in_form_alone():
    assert text_key("Caf&eacute;  MUG, red!") == text_key("café mug – ＲＥＤ") == "café mug red"
    assert text_key("red mug") != text_key("blue mug")
    for one, other in (
        ("हरा", "हरी"),
        ("lens -1.5", "lens +1.5"),
        ("C#", "C"),
        ("50 %", "50"),
        ("♂", "♀"),
        ("?", "!"),
    ):
        assert text_key(one) != text_key(other)
    assert text_key("赤い傘。") == text_key("赤い傘") != text_key("青い傘")

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
"""Pairs that do not belong together are told from those that do."""

import pytest
import torch

from fusionmatch.evaluation.mismatches import suspicions, suspicious_listings


@pytest.fixture(scope="module")
def pairs():
    """100 products of two pictures; a text is a linear map of what its pictures show, with noise."""
    generator = torch.Generator().manual_seed(0)
    shown = torch.randn(100, 12, generator=generator).repeat_interleave(2, dim=0)
    images = shown @ torch.randn(12, 40, generator=generator) + 0.3 * torch.randn(200, 40, generator=generator)
    texts = shown @ torch.randn(12, 20, generator=generator) + 0.1
    return images, texts, [str(i // 2) for i in range(200)]


def test_what_belongs_together_is_not_suspicious(pairs):
    found, nearest = suspicions(*pairs)
    assert found.shape == (200,)
    assert found.median() < 0.02 and (found > 0.5).sum() == 0
    products = pairs[2]
    assert nearest.shape == (200, 24)
    assert all(products[row] != products[other] for row in range(200) for other in nearest[row].tolist())


def test_swapped_texts_are(pairs):
    images, texts, products = pairs
    texts = texts.clone()
    rows = torch.arange(0, 40)
    texts[rows] = texts[rows.roll(2)]
    found, _ = suspicions(images, texts, products)
    swapped = torch.zeros(200, dtype=torch.bool)
    swapped[rows] = True
    assert found[~swapped].max() < 0.5
    # Uniform in them, so half lie above one half.
    assert 0.3 < (found[swapped] > 0.5).double().mean() < 0.7
    assert swapped[found.argsort(descending=True)[:40]].double().mean() > 0.9


def test_two_texts_that_changed_places_are_named_together(pairs):
    images, texts, products = pairs
    texts = texts.clone()
    # Products 3 and 70, with both pictures each.
    texts[[6, 7, 140, 141]] = texts[[140, 141, 6, 7]]
    listings = suspicious_listings(images, texts, products)
    assert [listing.share for listing in listings] == sorted((listing.share for listing in listings), reverse=True)
    named = {products[each.row]: products[each.swapped_with] for each in listings if each.swapped_with is not None}
    assert named in ({"3": "70", "70": "3"}, {"3": "70"}, {"70": "3"})
    for listing in listings:
        assert len({products[row] for row in (listing.row, *listing.fits)}) == 4


def test_copies_of_a_text_do_not_speak_against_it(pairs):
    images, texts, products = pairs
    alike = texts.clone()
    alike[:100] = alike[0]
    # The half of all products with one and the same text: none of theirs fits better than its own.
    assert (suspicions(images, alike, products)[0][:100] <= 0.51).all()


def test_the_same_again_and_too_few_products(pairs):
    images, texts, products = pairs
    for one, again in zip(suspicions(images, texts, products), suspicions(images, texts, products), strict=True):
        assert torch.equal(one, again)
    with pytest.raises(ValueError, match="at least 20 products, there are 2"):
        suspicions(images[:4], texts[:4], products[:4])

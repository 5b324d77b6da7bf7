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

import math

import datasets
import pytest
import torch
from peft import get_peft_model

from fusionmatch.catalogue import read_catalogue
from fusionmatch.catalogue.sample_shop import write_sample_shop
from fusionmatch.evaluation.calibration import PairCalibration
from fusionmatch.evaluation.inputs import image_inputs
from fusionmatch.evaluation.mismatches import (
    own_texts,
    pair_probabilities,
    suspicions,
    suspicious_listings,
    tower_vectors,
)
from fusionmatch.evaluation.retrieval import CatalogueEmbeddings
from fusionmatch.training import lora_config

from ..core.tiny import tiny_model, tiny_processor


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


def test_a_calibrated_model_has_a_say(pairs):
    images, texts, products = pairs
    texts = texts.clone()
    texts[[6, 7, 140, 141]] = texts[[140, 141, 6, 7]]
    alone = suspicious_listings(images, texts, products)
    assert suspicious_listings(images, texts, products, probabilities=[1.0] * 200) == []
    sure = [1.0] * 200
    sure[alone[-1].row], sure[alone[0].row] = 0.1, 0.3
    both = suspicious_listings(images, texts, products, probabilities=sure)
    assert {each.row: each.probability for each in both} == {alone[-1].row: 0.1, alone[0].row: 0.3}
    assert both[0].suspicion == pytest.approx((both[0].share + 1 - both[0].probability) / 2)
    assert both[0].suspicion > both[1].suspicion > 0.5


def test_the_probability_of_a_row_is_the_mean_over_its_texts():
    calibration = PairCalibration(score=4.0, intercept=-1.0, matched=0.5, pictures=20)
    embeds = torch.nn.functional.normalize(torch.tensor([[1.0, 0], [0.6, 0.8], [0, 1.0]]), dim=1)
    found = CatalogueEmbeddings(embeds[:2], embeds, ["a", "b"], ["a", "a", "b"], ["one", "two", "two"])
    rows = datasets.Dataset.from_dict({"texts": [["two", "one"], ["two"]], "product": ["a", "b"]})
    places = own_texts(found, rows)
    assert places == [[1, 0], [2]]
    one, both, other = (1 / (1 + math.exp(1 - 4 * cosine)) for cosine in (1, 0.6, 0.8))
    assert pair_probabilities(found, places, calibration) == pytest.approx([(one + both) / 2, other])


def test_what_an_adapter_has_learnt_is_no_evidence(tmp_path):
    rows = read_catalogue(write_sample_shop(tmp_path, num_products=4, image_size=48, faults=False)).dataset
    model, processor = tiny_model().eval(), tiny_processor()
    before = tower_vectors(model, processor, rows, disable_tqdm=True)
    adapted = get_peft_model(model, lora_config(model)).eval()
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight)
    pixels = image_inputs(processor, rows["image"][:4])
    assert not torch.equal(adapted.base_model.model.encode_tower(pixel_values=pixels).pooled, before[0][:4])
    for one, again in zip(before, tower_vectors(adapted, processor, rows, disable_tqdm=True), strict=True):
        torch.testing.assert_close(one, again)


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

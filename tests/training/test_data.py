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
from functools import partial

import datasets
import pytest
import torch
import transformers
from PIL import Image, ImageOps

from fusionmatch.evaluation.inputs import (
    count_truncated,
    image_inputs,
    prepare_image,
    stack_images,
    text_inputs,
    text_limit,
)
from fusionmatch.training.data import FusionMatchCollator, PairDataset, picture_view, product_id
from fusionmatch.training.objective import BatchPairs
from fusionmatch.training.unpaired import PartlyPairedDataset

from ..core.tiny import tiny_model, tiny_pictures, tiny_processor, tower_config


def rows(texts, products):
    return datasets.Dataset.from_dict(
        {"image": [Image.new("RGB", (8, 8), (10 * i, 0, 0)) for i in range(len(texts))], "texts": texts}
        | {"product": products}
    ).cast_column("image", datasets.Image())


def test_every_text_is_seen_equally_often():
    pairs = PairDataset(rows([["a", "b", "c"], ["d"]], ["p", "q"]))
    seen = []
    for epoch in range(6):
        pairs.set_epoch(epoch)
        seen += pairs[0]["texts"]
    assert sorted(seen) == ["a", "a", "b", "b", "c", "c"]
    assert pairs[1]["texts"] == ["d"]


def test_several_texts_of_a_picture_are_different_ones():
    prepare = partial(prepare_image, tiny_processor())
    pairs = PairDataset(rows([["a", "b", "c"], ["d"]], ["p", "q"]), texts_per_image=2, prepare=prepare)
    assert len(set(pairs[0]["texts"])) == 2
    assert pairs[1]["texts"] == ["d"]
    batch = FusionMatchCollator(tiny_processor(), tower_config("bert"))([pairs[0], pairs[1]])
    assert len(batch["pixel_values"].pixel_bytes) == 2
    assert len(batch["input_ids"]) == 3
    assert batch["text_products"].tolist() == [product_id("p"), product_id("p"), product_id("q")]


def test_shared_pictures_and_texts_are_no_negatives():
    data = rows([["Mug", "red"], ["mug!", "blue"], ["lamp"], ["chair"]], ["p", "q", "r", "s"])
    pairs = PairDataset(
        data.add_column("picture_group", ["1", "2", "3", "1"]),
        texts_per_image=2,
        prepare=partial(prepare_image, tiny_processor()),
    )
    batch = FusionMatchCollator(tiny_processor(), tower_config("bert"))([pairs[i] for i in range(4)])
    names = ("text_products", "image_products", "text_names", "image_names")
    found = BatchPairs.gather(*(batch[name] for name in names), pairs.shared)
    texts = [text for i in range(4) for text in pairs[i]["texts"]]
    ignored = {(texts[i], "pqrs"[j]) for i, j in (found.ignored & ~found.positives).nonzero().tolist()}
    # Products p and q have the same title; s has a copy of the picture of p.
    assert ignored == {("Mug", "q"), ("mug!", "p"), ("Mug", "s"), ("red", "s"), ("chair", "p")}
    assert torch.equal(found.ignored, found.own_ignored)
    assert not PairDataset(rows([["a"], ["b"]], ["p", "q"])).shared


@pytest.mark.parametrize("product", ["p", "unpaired"])
def test_a_copy_that_nobody_has_matched_yet_is_no_negative(product):
    data = rows([["red mug"], ["lamp"], []], ["p", "q", product]).add_column("picture_group", ["1", "2", "1"])
    texts = datasets.Dataset.from_dict({"text": ["crimson cup"], "products": [["p"]]})
    pairs = PartlyPairedDataset(data, texts, prepare=partial(prepare_image, tiny_processor()))
    pairs.assigned[2] = 0
    batch = FusionMatchCollator(tiny_processor(), tower_config("bert"))([pairs[i] for i in range(3)])
    names = ("text_products", "image_products", "text_names", "image_names")
    found = BatchPairs.gather(*(batch[name] for name in names), pairs.shared)
    assert (found.ignored & ~found.positives).nonzero().tolist() == [[0, 2], [2, 0]]


def test_views_take_turns_and_are_always_the_same():
    picture = Image.effect_noise((40, 30), 60).convert("RGB")
    data = datasets.Dataset.from_dict({"image": [picture] * 2, "texts": [["a"], ["b"]], "product": ["p", "q"]})
    pairs = PairDataset(data.cast_column("image", datasets.Image()), image_views=4)
    seen = []
    for epoch in range(4):
        pairs.set_epoch(epoch)
        seen.append(pairs[1]["view_index"])
    assert sorted(seen) == [4, 5, 6, 7]
    views = [picture_view(picture, 1, view) for view in range(4)]
    assert views[0] is picture
    assert views[1].tobytes() == ImageOps.mirror(picture).tobytes()
    for view in views[2:]:
        assert 0.35 < view.width * view.height / (40 * 30) < 0.95
    assert picture_view(picture, 1, 3).tobytes() == views[3].tobytes() != picture_view(picture, 2, 3).tobytes()
    assert picture_view(Image.new("L", (1, 1)), 0, 2).size == (1, 1)


def test_text_indices_count_through_all_rows():
    pairs = PairDataset(rows([["a", "b"], ["c"], ["d", "e"]], ["p", "q", "r"]), texts_per_image=9)
    indices = sorted(i for row in range(3) for i in pairs[row]["text_indices"])
    assert indices == [0, 1, 2, 3, 4]


def test_product_ids_are_the_same_everywhere():
    assert product_id("MH01") == 3141993529914123483  # written down once, in another process
    assert product_id("MH01") != product_id("MH02")
    assert 0 <= product_id("赤い傘") < 2**63


def test_one_product_is_refused():
    with pytest.raises(ValueError, match="at least two products"):
        PairDataset(rows([["a"], ["b"]], ["p", "p"]))


def test_another_schema_is_refused():
    with pytest.raises(ValueError, match=r"no column \['product', 'texts'\]"):
        PairDataset(datasets.Dataset.from_dict({"image": [1], "caption": ["a"]}))


def test_truncated_texts_are_counted():
    processor = tiny_processor()
    texts = ["red mug", " ".join(["red"] * 38), " ".join(["red"] * 39)]
    assert count_truncated(processor, texts, tower_config("bert")) == 1  # the limit is 40 with [CLS] and [SEP]
    processor.tokenizer.model_max_length = 3
    assert count_truncated(processor, texts, tower_config("bert")) == 3


def test_the_limit_is_never_beyond_the_positions_of_the_tower():
    processor = tiny_processor()
    processor.tokenizer.model_max_length = int(1e30)
    assert text_limit(processor, tower_config("bert")) == 40
    xlm = tower_config("xlm-roberta", pad_token_id=1)
    assert text_limit(processor, xlm) == 38
    model = tiny_model(text="xlm-roberta")
    model(**text_inputs(processor, [" ".join(["red"] * 90)], xlm))


def test_siglip_texts_do_not_depend_on_their_neighbours():
    processor, model = tiny_processor(), tiny_model(text="siglip_text_model")
    config = model.config.text_config
    alone = model(**text_inputs(processor, ["a red mug"], config)).text_embeds
    beside = model(**text_inputs(processor, ["a red mug", " ".join(["lamp"] * 20)], config)).text_embeds
    torch.testing.assert_close(alone[0], beside[0], atol=1e-6, rtol=0)


def test_pictures_of_any_mode_become_batches():
    processor = tiny_processor()
    collate = FusionMatchCollator(processor, tower_config("bert"))
    items = [
        {
            "image": prepare_image(processor, Image.new(mode, (9, 7))),
            "texts": ["a"],
            "product": i,
            "view_index": i,
            "text_indices": [i],
        }
        for i, mode in enumerate(("RGB", "L", "RGBA", "P", "CMYK", "1", "LA"))
    ]
    batch = collate(items)
    pixels = batch["pixel_values"].normalized()
    assert pixels.shape == (7, 3, 32, 32)
    assert torch.isfinite(pixels).all()


@pytest.mark.parametrize("mini_batch_size", [None, 2])
def test_pictures_as_bytes_are_embedded_as_their_floats(mini_batch_size):
    processor, model = tiny_processor(), tiny_model().train()
    pictures = tiny_pictures(5)
    as_bytes = stack_images(processor, [prepare_image(processor, picture) for picture in pictures])
    assert as_bytes.pixel_bytes.dtype == torch.uint8
    assert all(part.is_contiguous() for part in as_bytes.values()), "else it cannot be pinned"
    found = [
        model(pixel_values=pixels, mini_batch_size=mini_batch_size).image_embeds
        for pixels in (as_bytes, image_inputs(processor, pictures))
    ]
    assert torch.equal(*found)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("EfficientNetImageProcessorPil", {"size": {"height": 32, "width": 32}}),
        # Bytes, but with the channels first, for a tower that normalises them itself.
        ("ConvNextImageProcessorPil", {"size": {"shortest_edge": 32}, "do_rescale": False, "do_normalize": False}),
    ],
)
def test_pictures_that_a_processor_prepares_in_its_own_way(name, settings):
    processor = tiny_processor()
    processor.image_processor = getattr(transformers, name)(**settings)
    pictures = tiny_pictures(3)
    batch = stack_images(processor, [prepare_image(processor, picture) for picture in pictures])
    expected = processor.image_processor(images=pictures, return_tensors="pt")["pixel_values"]
    assert torch.equal(batch, expected)

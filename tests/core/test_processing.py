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
"""The processor: one call for pictures and texts, saved and loaded as one object."""

import pytest
import torch
from transformers import AutoProcessor

from fusionmatch import FusionMatchProcessor

from .tiny import tiny_model, tiny_pictures, tiny_processor


TEXTS = ["a red mug", "photo of a blue lamp"]


@pytest.fixture
def processor():
    return tiny_processor()


def test_pictures_and_texts_in_one_call(processor):
    inputs = processor(images=tiny_pictures(2), text=TEXTS, padding=True, return_tensors="pt")
    assert inputs["pixel_values"].shape == (2, 3, 32, 32)
    assert inputs["input_ids"].shape == (2, 7)
    # [CLS] a red mug [SEP] and two padding tokens
    assert inputs["attention_mask"].tolist() == [[1, 1, 1, 1, 1, 0, 0], [1] * 7]
    assert inputs["input_ids"][0].tolist() == [2, 5, 6, 9, 3, 0, 0]


def test_one_modality_alone(processor):
    assert "pixel_values" not in processor(text=TEXTS[0], return_tensors="pt")
    assert set(processor(images=tiny_pictures(1), return_tensors="pt")) == {"pixel_values"}


def test_long_texts_are_cut_to_the_tower_s_length(processor):
    inputs = processor(text=["a " * 100], truncation=True, return_tensors="pt")
    assert inputs["input_ids"].shape == (1, 40)


def test_what_it_gives_fits_the_model(processor):
    model = tiny_model()
    inputs = processor(images=tiny_pictures(2), text=TEXTS, padding=True, return_tensors="pt")
    assert set(inputs) == {"input_ids", "token_type_ids", "attention_mask", "pixel_values"}
    assert model(**inputs).logits_per_image.shape == (2, 2)


def test_saved_and_loaded_processor_gives_the_same(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    loaded = FusionMatchProcessor.from_pretrained(tmp_path, backend="pil")
    arguments = {"images": tiny_pictures(2), "text": TEXTS, "padding": True, "return_tensors": "pt"}
    first, second = processor(**arguments), loaded(**arguments)
    for name in first:
        assert torch.equal(first[name], second[name]), name


def test_auto_processor_finds_it_beside_the_model(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    tiny_model().save_pretrained(tmp_path)
    assert isinstance(AutoProcessor.from_pretrained(tmp_path), FusionMatchProcessor)

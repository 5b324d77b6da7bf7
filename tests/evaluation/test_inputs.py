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
"""Pixels are those of the image processor, however they were made."""

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from fusionmatch.evaluation import inputs
from fusionmatch.evaluation.inputs import image_inputs


class Wrapper:
    def __init__(self, image_processor):
        self.image_processor = image_processor


def pictures():
    noise = np.random.default_rng(1)
    sizes = ((37, 90), (90, 37), (64, 64), (511, 301), (20, 21))
    return [Image.fromarray(noise.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes]


@pytest.mark.parametrize(
    ("name", "settings", "usual"),
    [
        ("ViTImageProcessorPil", {"size": {"height": 48, "width": 40}, "resample": 3}, True),
        ("CLIPImageProcessorPil", {"size": {"shortest_edge": 56}, "crop_size": {"height": 48, "width": 48}}, True),
        ("SiglipImageProcessorPil", {"size": {"height": 48, "width": 48}}, True),
        ("BitImageProcessorPil", {"size": {"shortest_edge": 50}, "crop_size": {"height": 32, "width": 48}}, True),
        # Smaller pictures are padded by it, and cropped by a share of its own.
        ("ConvNextImageProcessorPil", {"size": {"shortest_edge": 48}}, False),
        ("EfficientNetImageProcessorPil", {"size": {"height": 48, "width": 48}}, False),
    ],
)
def test_pixels_are_those_of_the_processor(name, settings, usual):
    processor = getattr(transformers, name)(**settings)
    own = inputs._does_the_usual(type(processor), inputs.json.dumps(processor.to_dict(), sort_keys=True, default=str))
    assert own == usual
    images = pictures()
    found = image_inputs(Wrapper(processor), images)
    expected = processor(images=images, return_tensors="pt")["pixel_values"]
    assert torch.allclose(found, expected, atol=1e-5)
    assert found.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("mode", ["L", "RGBA", "CMYK", "P", "1"])
def test_any_mode(mode):
    processor = transformers.ViTImageProcessorPil(size={"height": 16, "width": 16})
    assert image_inputs(Wrapper(processor), [Image.new(mode, (7, 9))]).shape == (1, 3, 16, 16)

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

import json
from functools import cache

import numpy as np
import pytest
import torch
import transformers
from PIL import Image, ImageDraw, ImageFilter

from fusionmatch.evaluation import inputs
from fusionmatch.evaluation.inputs import image_inputs


# Portrait and landscape, smaller and larger than the tower's; a strip, and one that PIL keeps in several blocks.
SIZES = ((90, 37), (37, 90), (64, 64), (301, 511), (21, 20), (48, 48), (640, 480), (3, 400), (2500, 1700))


class Wrapper:
    def __init__(self, image_processor):
        self.image_processor = image_processor


@cache
def noise(size, seed=1):
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@cache
def scene(size, seed=1):
    """Shapes with hard edges before a soft ground, on white as in a shop, with the grain of a camera."""
    draw_at = np.random.default_rng(seed)
    image = noise((5, 4), seed).resize(size, Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 0, size[0] // 5, size[1]), fill="white")
    for _ in range(12):
        left, top = (draw_at.integers(0, n) for n in size)
        box = (left, top, left + draw_at.integers(1, size[0] + 1), top + draw_at.integers(1, size[1] + 1))
        draw.ellipse(box, fill=tuple(draw_at.integers(0, 256, 3).tolist()))
    return Image.blend(image, noise(size, seed).filter(ImageFilter.SMOOTH), 0.05)


def does_the_usual(processor):
    return inputs._does_the_usual(type(processor), json.dumps(processor.to_dict(), sort_keys=True, default=str))


def difference(found, processor, images):
    """To the image processor, as shares of the range of a pixel: on average, and at most."""
    expected = processor(images=images, return_tensors="pt")["pixel_values"].float()
    scale = processor.rescale_factor * 255 if processor.do_rescale else 255
    std = torch.tensor(processor.image_std)[:, None, None] if processor.do_normalize else 1
    apart = (found - expected).abs() * std / scale
    return apart.mean().item(), apart.max().item()


CLIP = ("CLIPImageProcessorPil", {"size": {"shortest_edge": 56}, "crop_size": {"height": 48, "width": 48}})
VIT = ("ViTImageProcessorPil", {"size": {"height": 48, "width": 40}, "resample": 3})


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        VIT,
        CLIP,
        ("CLIPImageProcessorPil", {"do_rescale": False, "do_normalize": False}),
        ("SiglipImageProcessorPil", {"size": {"height": 384, "width": 384}}),
        ("BitImageProcessorPil", {"size": {"shortest_edge": 50}, "crop_size": {"height": 32, "width": 48}}),
        ("CLIPImageProcessorPil", {"size": {"shortest_edge": 40}, "crop_size": {"height": 51, "width": 62}}),
    ],
)
@pytest.mark.parametrize("draw", [scene, noise])
@pytest.mark.skipif(not inputs._TORCH_RESIZES_BYTES, reason="PIL resizes on this machine")
def test_pixels_are_those_of_the_processor_but_for_rounding(name, settings, draw):
    processor = getattr(transformers, name)(**settings)
    assert does_the_usual(processor)
    images = [draw(size) for size in SIZES]
    found = image_inputs(Wrapper(processor), images)
    mean, largest = difference(found, processor, images)
    assert 0 < mean <= 4e-5 and largest <= 2.01 / 255
    assert found.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("name", "settings", "usual"),
    [
        ("ViTImageProcessorPil", {"size": {"height": 48, "width": 40}, "resample": 2}, True),
        ("ViTImageProcessorPil", {"size": {"height": 48, "width": 40}, "resample": 1}, True),
        ("SiglipImageProcessorPil", {"do_resize": False, "size": {"height": 48, "width": 48}}, True),
        # Smaller pictures are padded by it, and cropped by a share of its own.
        ("ConvNextImageProcessorPil", {"size": {"shortest_edge": 48}}, False),
        ("EfficientNetImageProcessorPil", {"size": {"height": 48, "width": 48}}, False),
    ],
)
def test_pixels_are_exactly_those_of_the_processor(name, settings, usual):
    processor = getattr(transformers, name)(**settings)
    assert does_the_usual(processor) == usual
    images = [scene(size) for size in (SIZES if processor.do_resize else [(70, 40)])]
    found = image_inputs(Wrapper(processor), images)
    assert difference(found, processor, images)[1] < 1e-6
    assert found.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("name", "settings"), [VIT, CLIP])
def test_without_the_instructions_pil_resizes(name, settings, monkeypatch):
    monkeypatch.setattr(inputs, "_TORCH_RESIZES_BYTES", False)
    processor = getattr(transformers, name)(**settings)
    images = [scene(size) for size in SIZES]
    assert difference(image_inputs(Wrapper(processor), images), processor, images)[1] < 1e-6


class Brighter(transformers.CLIPImageProcessorPil):
    """Half a step of a byte away, which no rounding is on average."""

    def preprocess(self, *args, **kwargs):
        batch = super().preprocess(*args, **kwargs)
        batch["pixel_values"] = batch["pixel_values"] + 0.002
        return batch


class Sharper(transformers.CLIPImageProcessorPil):
    """Says that it resizes by bicubic weights, and does it by others."""

    def preprocess(self, *args, **kwargs):
        return super().preprocess(*args, **(kwargs | {"resample": Image.Resampling.LANCZOS}))


@pytest.mark.parametrize("kind", [Brighter, Sharper])
def test_a_processor_that_differs_a_little_is_asked_itself(kind):
    processor = kind()
    assert not does_the_usual(processor)
    images = [scene((60, 50)), scene((50, 60))]
    found = image_inputs(Wrapper(processor), images)
    assert torch.equal(found, processor(images=images, return_tensors="pt")["pixel_values"])


def test_a_picture_does_not_depend_on_its_batch():
    processor = Wrapper(transformers.CLIPImageProcessorPil())
    images = [scene(size) for size in SIZES]
    together = image_inputs(processor, images)
    for picture, image in zip(together, images, strict=True):
        assert torch.equal(image_inputs(processor, [image])[0], picture)


@pytest.mark.parametrize("level", [0, 1, 127, 254, 255])
@pytest.mark.parametrize("size", [(2000, 1500), (50, 37), (9000, 100)])
def test_one_colour_stays_as_it_is(level, size):
    processor = transformers.CLIPImageProcessorPil(do_rescale=False, do_normalize=False)
    assert (image_inputs(Wrapper(processor), [Image.new("RGB", size, (level,) * 3)]) == level).all()


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "CMYK", "P", "1", "YCbCr"])
@pytest.mark.parametrize(("name", "settings"), [VIT, CLIP])
def test_any_mode(mode, name, settings):
    processor = getattr(transformers, name)(**settings)
    images = [scene(size).convert(mode) for size in ((70, 90), (200, 100))]
    found = image_inputs(Wrapper(processor), images)
    mean, largest = difference(found, processor, [image.convert("RGB") for image in images])
    # In two tones more pixels end in a half, which either way is right.
    assert mean <= (4e-4 if mode == "1" else 4e-5) and largest <= 2.01 / 255

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
"""Pictures and texts as the model takes them; the one place where commands, evaluation and training prepare them."""

import json
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from torch.nn import functional
from transformers import PreTrainedConfig

from ..outputs_fusionmatch import FusionMatchPixels


# What may lie between the pixels that are made here and the image processor's, as shares of the range of a pixel: on
# average over pictures, and at one place (two steps of a byte). Dithered ones of two tones are up to ten times as far
# on average, and no farther at one place.
MEAN_DIFFERENCE, LARGEST_DIFFERENCE = 4e-5, 2 / 255

# Torch's kernel for bytes is written for these instructions. Without them PIL is faster.
_TORCH_RESIZES_BYTES = torch.backends.cpu.get_cpu_capability().startswith("AVX")


def image_inputs(processor: Any, images: Iterable[Any]) -> torch.Tensor:
    """
    Pictures of any mode and size as pixels (images, channels, height, width).

    They lie in memory with the channels last, which convolutions on a CPU take less time with. What most image
    processors do (resize, crop at the centre, rescale, normalise) is done here, in less of their time (`python
    benchmarks/speed.py` prints it). Whether it is the same for a processor, to [`MEAN_DIFFERENCE`] and
    [`LARGEST_DIFFERENCE`], is found out once, on test pictures; the processor itself is asked where it is not. Pixels
    of a picture do not depend on the rest of the batch.
    """
    pixels = stack_images(processor, [prepare_image(processor, image) for image in images])
    return pixels.normalized() if isinstance(pixels, FusionMatchPixels) else pixels


def prepare_image(processor: Any, image: Image.Image) -> torch.Tensor:
    """
    One picture in the size of the tower: bytes (height, width, channels) where only rescaling and normalising is left
    to do, and else what the image processor gives, (channels, height, width).
    """
    image_processor = processor.image_processor
    if image.mode != "RGB":
        image = image.convert("RGB")
    # Decoded in full: where libjpeg decodes at a half to an eighth of the size (`Image.draft`), pixels come out ten to
    # a hundred times [`MEAN_DIFFERENCE`] apart, even if more than the tower's size is left.
    if _does_the_usual(*_identity(image_processor)):
        return _resized(image_processor, image)
    return image_processor(images=[image], return_tensors="pt")["pixel_values"][0]


def stack_images(processor: Any, images: list[torch.Tensor]) -> torch.Tensor | FusionMatchPixels:
    """
    Pictures that [`prepare_image`] has prepared as one batch, with the channels last in memory. The list is emptied on
    the way, so that a large batch is in memory once.
    """
    as_bytes = _does_the_usual(*_identity(processor.image_processor))
    layout = torch.contiguous_format if as_bytes else torch.channels_last
    batch = torch.empty((len(images), *images[0].shape), dtype=images[0].dtype, memory_format=layout)
    # By NumPy: threads that torch would wake for each picture take longer than the copy.
    rows = batch.numpy() if as_bytes else batch
    for place in reversed(range(len(images))):
        image = images.pop()
        rows[place] = image.numpy() if as_bytes else image
    return _as_bytes(processor.image_processor, batch) if as_bytes else batch


def _as_bytes(image_processor: Any, pixel_bytes: torch.Tensor) -> FusionMatchPixels:
    """Mean and deviation are those of the processor, as bytes count."""
    p = image_processor
    one = 1 / p.rescale_factor if p.do_rescale else 1.0
    mean, std = (p.image_mean, p.image_std) if p.do_normalize else ([0.0] * 3, [1.0] * 3)
    # Written out for each picture: memory is pinned as it is laid out, and one number cannot be many.
    mean, std = ((torch.tensor(part) * one).repeat(len(pixel_bytes), 1) for part in (mean, std))
    return FusionMatchPixels(pixel_bytes=pixel_bytes, mean=mean, std=std)


def _resized(image_processor: Any, image: Image.Image) -> torch.Tensor:
    """A picture resized and cropped at the centre, bytes (height, width, channels)."""
    p = image_processor
    width, height = image.size
    if p.do_resize:
        size = dict(p.size)
        if "shortest_edge" in size:
            # As `get_resize_output_image_size`: the longer side is rounded down.
            shorter, longer = sorted(image.size)
            edges = size["shortest_edge"], int(size["shortest_edge"] * longer / shorter)
            width, height = edges if image.width <= image.height else edges[::-1]
        else:
            width, height = size["width"], size["height"]
    pixels = _resize(image, width, height, p.resample).numpy()
    if not getattr(p, "do_center_crop", None):
        return torch.from_numpy(np.ascontiguousarray(pixels[..., :3]))
    crop_width, crop_height = p.crop_size["width"], p.crop_size["height"]
    left, top = (width - crop_width) // 2, (height - crop_height) // 2
    inside = pixels[max(top, 0) : top + crop_height, max(left, 0) : left + crop_width, :3]
    # Black around a picture that is smaller.
    cropped = np.zeros((crop_height, crop_width, 3), dtype=np.uint8)
    cropped[max(-top, 0) :, max(-left, 0) :][: inside.shape[0], : inside.shape[1]] = inside
    return torch.from_numpy(cropped)


def _resize(image: Image.Image, width: int, height: int, resample: int) -> torch.Tensor:
    """
    A picture in another size, bytes (height, width, channels), three of which are its colours.

    Torch does with bytes what PIL does, antialias and the rounding between the two passes included, but for weights of
    fewer bits. Where bilinear ones make many pixels end in a half (5 to 4), that is [`MEAN_DIFFERENCE`] seven times
    over, so only bicubic ones are left to it.
    """
    if (width, height) == image.size:
        return _bytes_of(image)
    # PIL takes the two passes in the other order in strips.
    if not _TORCH_RESIZES_BYTES or resample != Image.Resampling.BICUBIC or image.height > 100 * image.width:
        return _bytes_of(image.resize((width, height), Image.Resampling(resample)))
    pixels = _bytes_of(image).permute(2, 0, 1)[None]
    return functional.interpolate(pixels, (height, width), mode="bicubic", antialias=True)[0].permute(1, 2, 0)


def _bytes_of(image: Image.Image) -> torch.Tensor:
    """The memory of a picture (height, width, channels), not to be written to; without a copy, four channels."""
    try:
        values = pa.array(image).flatten()
    except ValueError:
        # A large picture lies in several blocks of memory.
        values = pa.array(np.asarray(image).ravel())
    return torch.from_dlpack(values).view(image.height, image.width, -1)


def _identity(image_processor: Any) -> tuple[type, str]:
    return type(image_processor), json.dumps(image_processor.to_dict(), sort_keys=True, default=str)


@cache
def _does_the_usual(kind: type, settings: str) -> bool:
    """Whether an image processor gives what we make of it, of smaller and larger pictures."""
    try:
        return _is_the_usual(kind.from_dict(json.loads(settings)))
    except Exception:  # noqa: BLE001 - a processor of somebody's own may raise anything; it is asked itself then
        return False


def _is_the_usual(image_processor: Any) -> bool:
    noise = np.random.default_rng(0)
    differences = []
    for size in ((50, 37), (31, 60), (400, 300), (224, 513)):
        image = Image.fromarray(noise.integers(0, 256, (*size, 3), dtype=np.uint8))
        expected = image_processor(images=[image], return_tensors="pt")["pixel_values"]
        batch = _as_bytes(image_processor, _resized(image_processor, image)[None])
        found = batch.normalized()
        if found.shape != expected.shape:
            return False
        # As shares of the range of a pixel, whatever the processor scales it to.
        differences.append(((found - expected.float()).abs() * batch.std[..., None, None] / 255).flatten())
    difference = torch.cat(differences)
    # Floats are rounded as well, by a few of their last bits.
    return bool(difference.mean() <= MEAN_DIFFERENCE and difference.max() <= LARGEST_DIFFERENCE + 1e-5)


def text_limit(processor: Any, text_config: PreTrainedConfig) -> int:
    """Most tokens of a text: the tokenizer's limit, or the number of positions of the text tower if that is less."""
    positions = getattr(text_config, "max_position_embeddings", None) or processor.tokenizer.model_max_length
    if "roberta" in text_config.model_type:
        # RoBERTa's positions begin after that of the padding.
        positions -= text_config.pad_token_id + 1
    return min(processor.tokenizer.model_max_length, positions)


def text_inputs(processor: Any, texts: Sequence[str], text_config: PreTrainedConfig) -> dict[str, torch.Tensor]:
    """
    Texts as token ids and attention mask (texts, length), cut at [`text_limit`].

    SigLIP's text tower reads its last position and was trained on texts padded to full length without a mask
    (https://huggingface.co/docs/transformers/model_doc/siglip), so its texts are prepared that way.
    """
    siglip = "siglip" in text_config.model_type
    return dict(
        processor.tokenizer(
            list(texts),
            padding="max_length" if siglip else True,
            truncation=True,
            max_length=text_limit(processor, text_config),
            return_attention_mask=not siglip,
            return_tensors="pt",
        )
    )


def count_tokens(processor: Any, texts: Sequence[str]) -> list[int]:
    """Length of each text in tokens, those that the tokenizer adds among them."""
    lengths = []
    for first in range(0, len(texts), 4096):
        encoded = processor.tokenizer(list(texts[first : first + 4096]), add_special_tokens=True, verbose=False)
        lengths += [len(ids) for ids in encoded["input_ids"]]
    return lengths


def count_truncated(processor: Any, texts: Sequence[str], text_config: PreTrainedConfig) -> int:
    """Number of texts with more tokens than [`text_limit`]."""
    limit = text_limit(processor, text_config)
    return sum(length > limit for length in count_tokens(processor, texts))

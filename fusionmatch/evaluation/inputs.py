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
import torch
from PIL import Image
from transformers import PreTrainedConfig

from ..outputs_fusionmatch import FusionMatchPixels


def image_inputs(processor: Any, images: Iterable[Any]) -> torch.Tensor:
    """
    Pictures of any mode and size as pixels (images, channels, height, width).

    They lie in memory with the channels last: convolutions on a CPU then take a third less time, and nothing else
    changes. What most image processors do (resize, crop at the centre, rescale, normalise) is done here for the whole
    batch at once, in half of their time; whether it is the same for a processor is found out once, on test pictures.
    """
    pixels = stack_images(processor, [prepare_image(processor, image) for image in images])
    return pixels.normalized() if isinstance(pixels, FusionMatchPixels) else pixels


def prepare_image(processor: Any, image: Image.Image) -> torch.Tensor:
    """
    One picture in the size of the tower: bytes (height, width, channels) where only rescaling and normalising is left
    to do, and else what the image processor gives, (channels, height, width).
    """
    image_processor, image = processor.image_processor, image.convert("RGB")
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
    for place in reversed(range(len(images))):
        batch[place] = images.pop()
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
    """A picture resized and cropped at the centre."""
    p = image_processor
    if p.do_resize:
        size = dict(p.size)
        if "shortest_edge" in size:
            # As `get_resize_output_image_size`: the longer side is rounded down.
            shorter, longer = sorted(image.size)
            edges = size["shortest_edge"], int(size["shortest_edge"] * longer / shorter)
            width, height = edges if image.width <= image.height else edges[::-1]
        else:
            width, height = size["width"], size["height"]
        if (width, height) != image.size:
            image = image.resize((width, height), Image.Resampling(p.resample))
    if getattr(p, "do_center_crop", None):
        width, height = p.crop_size["width"], p.crop_size["height"]
        left, top = (image.width - width) // 2, (image.height - height) // 2
        image = image.crop((left, top, left + width, top + height))
    return torch.from_numpy(np.array(image))


def _identity(image_processor: Any) -> tuple[type, str]:
    return type(image_processor), json.dumps(image_processor.to_dict(), sort_keys=True, default=str)


@cache
def _does_the_usual(kind: type, settings: str) -> bool:
    """Whether an image processor gives what we make of it, to 1e-5, of smaller and larger pictures."""
    try:
        return _is_the_usual(kind.from_dict(json.loads(settings)))
    except Exception:  # noqa: BLE001 - a processor of somebody's own may raise anything; it is asked itself then
        return False


def _is_the_usual(image_processor: Any) -> bool:
    noise = np.random.default_rng(0)
    for size in ((50, 37), (31, 60), (400, 300), (224, 513)):
        image = Image.fromarray(noise.integers(0, 256, (*size, 3), dtype=np.uint8))
        expected = image_processor(images=[image], return_tensors="pt")["pixel_values"]
        found = _as_bytes(image_processor, _resized(image_processor, image)[None]).normalized()
        if found.shape != expected.shape or not torch.allclose(found, expected.float(), atol=1e-5):
            return False
    return True


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

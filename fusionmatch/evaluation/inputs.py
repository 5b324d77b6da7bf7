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

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from transformers import PreTrainedConfig


def image_inputs(processor: Any, images: Iterable[Any]) -> torch.Tensor:
    """
    Pictures of any mode and size as pixels (images, channels, height, width).

    They lie in memory with the channels last: convolutions on a CPU then take a third less time, and nothing else
    changes.
    """
    pixel_values = processor.image_processor(images=[image.convert("RGB") for image in images], return_tensors="pt")
    return pixel_values["pixel_values"].contiguous(memory_format=torch.channels_last)


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


def count_truncated(processor: Any, texts: Sequence[str], text_config: PreTrainedConfig) -> int:
    """Number of texts with more tokens than [`text_limit`]."""
    limit = text_limit(processor, text_config)
    counted = 0
    for first in range(0, len(texts), 4096):
        encoded = processor.tokenizer(list(texts[first : first + 4096]), add_special_tokens=True, verbose=False)
        counted += sum(len(ids) > limit for ids in encoded["input_ids"])
    return counted

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
"""Processor class for FusionMatch."""

from typing import Any

from transformers import ProcessorMixin


class FusionMatchProcessor(ProcessorMixin):
    r"""
    Wraps the image processor of the vision tower and the tokenizer of the text tower into one object.

    Args:
        image_processor (`BaseImageProcessor`, *optional*):
            Image processor of the vision tower.
        tokenizer (`PreTrainedTokenizerBase`, *optional*):
            Tokenizer of the text tower.

    Calling it with `images` gives `pixel_values` of shape (batch, channels, height, width); with `text` it gives
    `input_ids` and `attention_mask` of shape (batch, length), and `token_type_ids` where the tokenizer makes them.

    Example:

    ```python
    >>> from transformers import AutoProcessor
    >>> import fusionmatch

    >>> processor = AutoProcessor.from_pretrained("path/to/checkpoint")
    >>> inputs = processor(images=image, text=["a red mug"], padding=True, truncation=True, return_tensors="pt")
    ```"""

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, **kwargs: Any) -> None:
        super().__init__(image_processor, tokenizer, **kwargs)


__all__ = ["FusionMatchProcessor"]

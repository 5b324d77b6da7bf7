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
"""Tiny models, processors and inputs, made here: nothing is downloaded, nothing is trained."""

import string
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import get_peft_model
from PIL import Image
from transformers import (
    AutoConfig,
    BertTokenizer,
    CLIPImageProcessorPil,
    PreTrainedConfig,
    set_seed,
)

from fusionmatch import FusionMatchConfig, FusionMatchModel, FusionMatchProcessor
from fusionmatch.loading import changed_settings, fingerprint, load_pretrained, write_fingerprint
from fusionmatch.training import lora_config


# Id of the token that ends a text: CLIP's text model looks for it.
END = 98

VOCABULARY = [
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
    *("a", "red", "green", "blue", "mug", "bowl", "lamp", "of", "photo", "this", "is", "lower", "newer"),
    *string.ascii_lowercase[1:],
    *(f"##{letter}" for letter in string.ascii_lowercase),
    *string.digits,
    *(",", ".", "!", "?"),
]

_BERT = {
    "vocab_size": 99,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 37,
    "max_position_embeddings": 40,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
_CLIP_TEXT = {
    "vocab_size": 99,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 37,
    "max_position_embeddings": 40,
    "bos_token_id": 0,
    "eos_token_id": END,
}
_VIT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 37,
    "image_size": 32,
    "patch_size": 8,
}
TEXT_TOWERS: dict[str, dict[str, Any]] = {
    "bert": _BERT,
    "distilbert": {"vocab_size": 99, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 37},
    "xlm-roberta": _BERT,
    "clip_text_model": _CLIP_TEXT,
    "siglip_text_model": {**_CLIP_TEXT, "projection_size": 32},
}
VISION_TOWERS: dict[str, dict[str, Any]] = {
    "vit": _VIT,
    "siglip_vision_model": _VIT,
    "clip_vision_model": _VIT,
    "swin": {
        "image_size": 32,
        "patch_size": 2,
        "embed_dim": 16,
        "depths": [1, 1],
        "num_heads": [2, 2],
        "window_size": 2,
    },
    "convnext": {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2, "image_size": 32},
    "resnet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"},
    "efficientnet": {
        "image_size": 32,
        "width_coefficient": 0.25,
        "depth_coefficient": 0.1,
        "hidden_dim": 320,
        "in_channels": [32, 16],
        "out_channels": [16, 24],
        "kernel_sizes": [3, 5],
        "strides": [1, 2],
        "num_block_repeats": [1, 1],
        "expand_ratios": [1, 6],
        "depthwise_padding": [],
    },
}


def tower_config(model_type: str, **settings: Any) -> PreTrainedConfig:
    return AutoConfig.for_model(model_type, **({**TEXT_TOWERS, **VISION_TOWERS}[model_type] | settings))


def tiny_config(vision: str = "vit", text: str = "bert", **settings: Any) -> FusionMatchConfig:
    """Two levels a tower, one block, no dropout: outputs are the same in training and in evaluation mode."""
    defaults = {
        "projection_dim": 24,
        "base_head_dim": 20,
        "vision_feature_levels": [-2, -1],
        "text_feature_levels": [-2, -1],
        "hidden_size": 16,
        "num_attention_heads": 4,
        "intermediate_size": 18,
        "hidden_dropout_prob": 0.0,
        # Random towers give all texts nearly the same; at 50 they collapse in place of learning.
        "logit_scale_init_value": 2.6592,
    }
    return FusionMatchConfig(
        vision_config=tower_config(vision), text_config=tower_config(text), **(defaults | settings)
    )


def tiny_model(vision: str = "vit", text: str = "bert", seed: int = 0, **settings: Any) -> FusionMatchModel:
    """A tiny model in evaluation mode; its gates stand open unless `gate_init_value` says otherwise."""
    set_seed(seed)
    return FusionMatchModel(tiny_config(vision, text, **({"gate_init_value": 0.3} | settings))).eval()


def healthy_model(seed: int = 0, **settings: Any) -> FusionMatchModel:
    """
    A tiny model that learns at the scale that a new model has: larger embeddings of words tell texts apart, of which
    random towers give nearly the same vector.
    """
    model = tiny_model(seed=seed, logit_scale_init_value=FusionMatchConfig().logit_scale_init_value, **settings)
    with torch.no_grad():
        model.text_model.get_input_embeddings().weight.mul_(20)
    return model


def tiny_inputs(batch: int = 3, length: int = 7, size: int = 32, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random pictures and texts; the last text is two tokens shorter than the others."""
    generator = torch.Generator().manual_seed(seed)
    input_ids = torch.randint(5, END, (batch, length), generator=generator)
    input_ids[:, 0] = 0
    attention_mask = torch.ones_like(input_ids)
    attention_mask[-1, -2:] = 0
    input_ids[-1, -2:] = 1
    input_ids[torch.arange(batch), attention_mask.sum(dim=1) - 1] = END
    pixel_values = torch.rand((batch, 3, size, size), generator=generator)
    return {"input_ids": input_ids, "attention_mask": attention_mask, "pixel_values": pixel_values}


def tiny_processor() -> FusionMatchProcessor:
    tokenizer = BertTokenizer(vocab={token: i for i, token in enumerate(VOCABULARY)}, model_max_length=40)
    image_processor = CLIPImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, do_convert_rgb=True
    )
    return FusionMatchProcessor(image_processor=image_processor, tokenizer=tokenizer)


def tiny_pictures(count: int = 3, seed: int = 0) -> list[Image.Image]:
    generator = np.random.default_rng(seed)
    return [Image.fromarray(generator.integers(0, 255, (40, 36, 3), dtype=np.uint8)) for _ in range(count)]


def perturb(model: torch.nn.Module, seed: int = 1) -> None:
    """Moves every parameter away from its initial value, so that one that is not saved or loaded shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))


def tiny_concepts(model: FusionMatchModel) -> FusionMatchModel:
    """The model with a bank of three concepts."""
    generator = torch.Generator().manual_seed(0)
    graph = torch.tensor([[1.0, 0.5, 0.0], [0.5, 1.0, 0.0], [0.0, 0.0, 1.0]])
    model.set_concepts(["red", "mug", "lamp"], graph, torch.randn(3, 6, generator=generator))
    return model


def make_adapter(base: Path, folder: Path, **settings: Any) -> Path:
    """An adapter as a training leaves it: with what it was made on noted beside it."""
    model, _ = load_pretrained(base, **settings)
    noted = str(base), fingerprint(model), "torch.float32", changed_settings(model.config)
    adapted = get_peft_model(model, lora_config(model))
    perturb(adapted)
    adapted.save_pretrained(folder)
    write_fingerprint(folder, *noted)
    return folder


def save_base_and_adapter(folder: Path) -> Path:
    """Folders `base` and `adapter`, which has LoRA and a head that it carries whole."""
    base = tiny_model()
    base.config.untrained_modules = ["text_head"]
    base.save_pretrained(folder / "base")
    tiny_processor().save_pretrained(folder / "base")
    make_adapter(folder / "base", folder / "adapter")
    return folder

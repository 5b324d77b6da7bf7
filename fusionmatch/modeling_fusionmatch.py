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
"""PyTorch FusionMatch model."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs, logging
from transformers.utils.generic import can_return_tuple

from .configuration_fusionmatch import FusionMatchConfig
from .consensus_fusionmatch import FusionMatchConceptBank, FusionMatchConceptsMixin, FusionMatchConsensus
from .heads_fusionmatch import (
    FusionMatchGatedResidual,
    FusionMatchParameterisedFusion,
    FusionMatchSimilarity,
    build_head,
    l2_normalize,
)
from .losses_fusionmatch import infonce_loss
from .modeling_fusionmatch_branch import FusionMatchBranch, FusionMatchLevelPooling
from .modeling_fusionmatch_pretrained import FusionMatchAdapterMixin, FusionMatchFromPretrainedMixin
from .outputs_fusionmatch import (
    FusionMatchOutput,
    FusionMatchPixels,
    FusionMatchTowerFeatures,
    FusionMatchTowerOutput,
    batch_parts,
    embed_in_parts,
)
from .towers_fusionmatch import (
    accepted,
    build_tower,
    check_text_tower,
    level_tokens,
    pool_tokens,
    probe_vision_tower,
    select_levels,
    wanted_hidden_states,
)


logger = logging.get_logger(__name__)


class FusionMatchPreTrainedModel(FusionMatchAdapterMixin, PreTrainedModel):
    """Handles weights initialisation, and downloading and loading of checkpoints."""

    config: FusionMatchConfig
    base_model_prefix = "fusionmatch"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = ["FusionMatchLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        std = self.config.initializer_range
        if isinstance(module, FusionMatchBranch):
            init.normal_(module.level_embeddings, std=std)
        elif isinstance(module, FusionMatchGatedResidual):
            init.constant_(module.gate, self.config.gate_init_value)
        elif isinstance(module, FusionMatchConceptBank):
            # A bank that nobody filled has no words and no graph.
            init.zeros_(module.vectors)
            init.zeros_(module.graph)
        elif isinstance(module, FusionMatchConsensus):
            init.constant_(module.log_sharpness, math.log(10))
        elif isinstance(module, FusionMatchLevelPooling):
            init.normal_(module.query, std=std)
        elif isinstance(module, FusionMatchParameterisedFusion) and module.mode == "weighted_sum":
            init.zeros_(module.weight)
        elif isinstance(module, FusionMatchSimilarity):
            init.constant_(module.logit_scale, self.config.logit_scale_init_value)
            if module.logit_bias is not None:
                init.constant_(module.logit_bias, self.config.logit_bias_init_value)


class FusionMatchModel(FusionMatchConceptsMixin, FusionMatchFromPretrainedMixin, FusionMatchPreTrainedModel):
    r"""
    Matches pictures and texts in one embedding space. For each modality

        embedding = normalise(base + tanh(g) * fused)

    where `base` is the plain path (pooled tower features through a head; on CLIP or SigLIP towers their own
    embedding), `fused` the fusion branch (several levels of the tower through multi-head self-attention, pooled by a
    learned query a level, fused by learned shares) scaled to the length of `base`, and g a gate that starts at 0: a
    model that was just put together equals its plain path, and all that the branch adds is learned.

    The method follows arXiv 2412.19184; `docs/architecture.md` says which parts of it the paper leaves open.

    Args:
        config ([`FusionMatchConfig`]):
            Configuration. Builds towers with random weights; see [`~FusionMatchModel.from_vision_text_pretrained`] and
            [`~FusionMatchModel.from_dual_encoder_pretrained`] for trained ones.

    Raises:
        `ValueError`: a tower type that `AutoModel` cannot build, a level that a tower has not, or a head that does not
        fit the tower.
    """

    def __init__(self, config: FusionMatchConfig) -> None:
        super().__init__(config)
        self.vision_model = build_tower(config.vision_config, config.vision_pooling)
        self.text_model = build_tower(config.text_config, config.text_pooling)
        check_text_tower(config, self.text_model)
        self._vision_arguments = accepted(self.vision_model, "interpolate_pos_encoding")
        self._text_arguments = accepted(self.text_model, "token_type_ids", "position_ids")

        vision_size, level_sizes = probe_vision_tower(config)
        text_size = config.text_config.hidden_size
        if config.text_pooling == "pooler":
            text_size = getattr(config.text_config, "projection_size", None) or text_size
        self.vision_head = build_head(config, "vision", vision_size)
        self.text_head = build_head(config, "text", text_size)
        self.vision_fusion = FusionMatchBranch(config, level_sizes) if level_sizes else None
        text_level_sizes = [config.text_config.hidden_size] * len(config.text_feature_levels)
        self.text_fusion = FusionMatchBranch(config, text_level_sizes) if text_level_sizes else None
        self._build_consensus()
        self.similarity = FusionMatchSimilarity(config)

        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.text_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.text_model.set_input_embeddings(value)

    def train(self, mode: bool = True) -> "FusionMatchModel":
        """
        Like [`~torch.nn.Module.train`], but parts of the towers stay in evaluation mode: a tower without any trainable
        parameter as a whole (its features then do not depend on the step), and batch normalisations in any case. They
        keep the statistics of what the tower was trained on, of which a catalogue has too little: full tuning forgets
        half as much so (docs/results.md), and an item's embedding depends on no other of its batch. A tower with
        random weights has none yet; train it elsewhere first.
        """
        super().train(mode)
        for tower in (self.vision_model, self.text_model):
            if not any(parameter.requires_grad for parameter in tower.parameters()):
                tower.eval()
            for module in tower.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    def _wants(self, name: str, kwargs: dict[str, Any]) -> Any:
        value = kwargs.get(name)
        return getattr(self.config, name) if value is None else value

    def _hidden_states_needed(self, levels: list[int], kwargs: dict[str, Any]) -> bool:
        return any(level != -1 for level in levels) or bool(self._wants("output_hidden_states", kwargs))

    def _vision_tower(
        self, pixel_values: torch.Tensor | FusionMatchPixels, **kwargs: Unpack[TransformersKwargs]
    ) -> tuple[FusionMatchTowerFeatures, ModelOutput]:
        if isinstance(pixel_values, FusionMatchPixels):
            pixel_values = pixel_values.normalized()
        interpolate = kwargs.pop("interpolate_pos_encoding", None)
        if interpolate is not None and "interpolate_pos_encoding" in self._vision_arguments:
            kwargs["interpolate_pos_encoding"] = interpolate
        config = self.config
        kwargs["output_hidden_states"] = self._hidden_states_needed(config.vision_feature_levels, kwargs)
        outputs = self.vision_model(pixel_values=pixel_values.to(self.vision_model.dtype), return_dict=True, **kwargs)
        levels = select_levels(
            config.vision_feature_levels, outputs.last_hidden_state, outputs.get("hidden_states"), "vision"
        )
        image_size = (pixel_values.shape[-2], pixel_values.shape[-1])
        features = FusionMatchTowerFeatures(
            pooled=pool_tokens(outputs, None, config.vision_pooling, "vision"),
            levels=tuple(level_tokens(level, config.max_level_tokens, image_size) for level in levels),
        )
        return features, outputs

    def _text_tower(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[FusionMatchTowerFeatures, ModelOutput]:
        for name in ("token_type_ids", "position_ids"):
            value = kwargs.pop(name, None)
            if value is not None and name in self._text_arguments:
                kwargs[name] = value
        kwargs["output_hidden_states"] = self._hidden_states_needed(self.config.text_feature_levels, kwargs)
        outputs = self.text_model(input_ids=input_ids, attention_mask=attention_mask, return_dict=True, **kwargs)
        levels = select_levels(
            self.config.text_feature_levels, outputs.last_hidden_state, outputs.get("hidden_states"), "text"
        )
        features = FusionMatchTowerFeatures(
            pooled=pool_tokens(outputs, attention_mask, self.config.text_pooling, "text"),
            levels=tuple(levels),
            attention_mask=attention_mask,
        )
        return features, outputs

    @torch.no_grad()
    def encode_tower(self, **inputs: torch.Tensor | FusionMatchPixels) -> FusionMatchTowerFeatures:
        """
        Features of one tower, without the trainable rest: what a frozen tower's cache keeps.

        Args:
            inputs:
                `pixel_values` of shape (batch, channels, height, width), or `input_ids` and `attention_mask` of shape
                (batch, length), with `token_type_ids` and `position_ids` where the tower takes them.

        Returns:
            [`FusionMatchTowerFeatures`]: to be passed to [`~FusionMatchModel.forward`] as `vision_features` or
            `text_features`.
        """
        if "pixel_values" in inputs:
            return self._vision_tower(**inputs)[0]
        input_ids = inputs.pop("input_ids")
        attention_mask = inputs.pop("attention_mask", None)
        attention_mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        return self._text_tower(input_ids, attention_mask, **inputs)[0]

    def _embed(
        self,
        tower: str,
        features: FusionMatchTowerFeatures,
        outputs: ModelOutput | None,
        hidden_states_wanted: bool | int | list[int],
        **kwargs: Unpack[TransformersKwargs],
    ) -> FusionMatchTowerOutput:
        """Plain path plus gated branch: `base + tanh(g) * fused`, with `fused` as long as `base`."""
        head, branch, consensus = (getattr(self, f"{tower}_{part}") for part in ("head", "fusion", "consensus"))
        attentions_wanted = kwargs["output_attentions"]
        base = head(features.pooled.to(self.similarity.logit_scale.dtype))
        values = {
            "last_hidden_state": None if outputs is None else outputs.last_hidden_state,
            "pooler_output": base,
            "hidden_states": None if outputs is None else wanted_hidden_states(outputs, hidden_states_wanted),
            # Empty where the tower runs SDPA or the like; transformers has warned then.
            "attentions": (outputs.get("attentions") or None) if outputs is not None and attentions_wanted else None,
            "base_embeds": base,
        }
        if branch is not None:
            found = branch(features, **kwargs)
            values |= {
                "fusion_weights": found.weights,
                "fusion_tokens": found.tokens,
                "fusion_mask": found.mask,
                "fusion_attentions": found.attentions if attentions_wanted else None,
                "level_attentions": found.level_attentions if attentions_wanted else None,
            }
            vector = found.instance
            if consensus is not None:
                vector, about, values["concept_log_probs"], values["consensus_weights"] = consensus(
                    found.instance, self.concept_bank()
                )
                values["instance_embeds"] = branch.residual.project(found.instance)
                values["consensus_embeds"] = branch.residual.project(about)
            values["pooler_output"], values["fused_embeds"] = branch.residual(base, vector)
            values.setdefault("instance_embeds", values["fused_embeds"])
        return FusionMatchTowerOutput(**values)

    @can_return_tuple
    def get_text_features(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        text_features: FusionMatchTowerFeatures | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | BaseModelOutputWithPooling:
        r"""
        Embeds texts.

        Args:
            input_ids (`torch.LongTensor` of shape `(batch, length)`, *optional*):
                Token ids.
            attention_mask (`torch.Tensor` of shape `(batch, length)`, *optional*):
                1 for tokens, 0 for padding.
            token_type_ids (`torch.LongTensor` of shape `(batch, length)`, *optional*):
                Segment ids, passed on where the text tower takes them.
            position_ids (`torch.LongTensor` of shape `(batch, length)`, *optional*):
                Positions, passed on where the text tower takes them.
            text_features ([`FusionMatchTowerFeatures`], *optional*):
                The tower's features, computed earlier by [`~FusionMatchModel.encode_tower`], in place of token ids.

        Returns:
            [`FusionMatchTowerOutput`]: `pooler_output` is the embedding before L2 normalisation.
        """
        hidden_states_wanted = self._wants("output_hidden_states", kwargs)
        kwargs["output_attentions"] = bool(self._wants("output_attentions", kwargs))
        outputs = None
        if text_features is None:
            if attention_mask is None:
                attention_mask = torch.ones_like(input_ids)
            text_features, outputs = self._text_tower(
                input_ids, attention_mask, token_type_ids=token_type_ids, position_ids=position_ids, **kwargs
            )
        return self._embed("text", text_features, outputs, hidden_states_wanted, **kwargs)

    @can_return_tuple
    def get_image_features(
        self,
        pixel_values: torch.FloatTensor | FusionMatchPixels | None = None,
        interpolate_pos_encoding: bool | None = None,
        vision_features: FusionMatchTowerFeatures | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple | BaseModelOutputWithPooling:
        r"""
        Embeds pictures.

        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch, channels, height, width)`, *optional*):
                Pictures as the image processor gives them.
            interpolate_pos_encoding (`bool`, *optional*):
                Whether to interpolate the position encodings to another picture size, where the vision tower can.
            vision_features ([`FusionMatchTowerFeatures`], *optional*):
                The tower's features, computed earlier by [`~FusionMatchModel.encode_tower`], in place of pixels.

        Returns:
            [`FusionMatchTowerOutput`]: `pooler_output` is the embedding before L2 normalisation.
        """
        hidden_states_wanted = self._wants("output_hidden_states", kwargs)
        kwargs["output_attentions"] = bool(self._wants("output_attentions", kwargs))
        outputs = None
        if vision_features is None:
            vision_features, outputs = self._vision_tower(
                pixel_values, interpolate_pos_encoding=interpolate_pos_encoding, **kwargs
            )
        return self._embed("vision", vision_features, outputs, hidden_states_wanted, **kwargs)

    def _in_parts(
        self,
        embed: Callable[..., Any],
        inputs: dict[str, torch.Tensor | FusionMatchTowerFeatures | FusionMatchPixels | None],
        mini_batch_size: int | None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> FusionMatchTowerOutput:
        """A batch through `embed`, in parts where that is asked for or saves time."""
        first = next(value for value in inputs.values() if value is not None)
        cached = isinstance(first, FusionMatchTowerFeatures)
        mask = (first if cached else inputs).get("attention_mask")
        # Structures hold their tensors in a dictionary; all have the items of the batch first.
        batch = len(first if isinstance(first, torch.Tensor) else first[0])
        # Whoever embeds many texts sorts them by length; and PEFT's mixed batches have to stay whole.
        parts = batch_parts(batch, mask, mini_batch_size) if self.training or mini_batch_size is not None else []
        per_token = self._wants("output_attentions", kwargs) or self._wants("output_hidden_states", kwargs)
        if per_token and parts and mini_batch_size is not None:
            raise ValueError(
                "Attentions and hidden states are not returned in mini-batches. Leave out `mini_batch_size`, or "
                "`output_attentions` and `output_hidden_states`."
            )
        if per_token or not parts:
            return embed(**inputs, **kwargs, return_dict=True)
        return embed_in_parts(embed, parts, inputs, recompute=mini_batch_size is not None, **kwargs)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.FloatTensor | FusionMatchPixels | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        interpolate_pos_encoding: bool | None = None,
        vision_features: FusionMatchTowerFeatures | None = None,
        text_features: FusionMatchTowerFeatures | None = None,
        product_ids: torch.LongTensor | None = None,
        return_loss: bool | None = None,
        mini_batch_size: int | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> FusionMatchOutput:
        r"""
        Embeds pictures, texts or both, and compares them.

        Args:
            input_ids (`torch.LongTensor` of shape `(texts, length)`, *optional*):
                Token ids.
            pixel_values (`torch.FloatTensor` of shape `(images, channels, height, width)`, *optional*):
                Pictures as the image processor gives them, or as bytes ([`FusionMatchPixels`]).
            attention_mask (`torch.Tensor` of shape `(texts, length)`, *optional*):
                1 for tokens, 0 for padding.
            token_type_ids (`torch.LongTensor` of shape `(texts, length)`, *optional*):
                Segment ids, passed on where the text tower takes them.
            position_ids (`torch.LongTensor` of shape `(texts, length)`, *optional*):
                Positions, passed on where the text tower takes them.
            interpolate_pos_encoding (`bool`, *optional*):
                Whether to interpolate the position encodings to another picture size, where the vision tower can.
            vision_features ([`FusionMatchTowerFeatures`], *optional*):
                Features from [`~FusionMatchModel.encode_tower`] in place of `pixel_values`.
            text_features ([`FusionMatchTowerFeatures`], *optional*):
                Features from [`~FusionMatchModel.encode_tower`] in place of `input_ids`.
            product_ids (`torch.LongTensor` of shape `(pairs,)`, *optional*):
                Product (group) of each pair for the loss: pictures and texts of one product are all positives.
            return_loss (`bool`, *optional*):
                Whether to return the contrastive loss; the i-th picture and the i-th text are then a pair.
            mini_batch_size (`int`, *optional*):
                Pictures and texts that go through the towers at a time. The loss is still among all of them; the
                backward pass computes each mini-batch anew, so that memory is that of one (arXiv 2101.06983).

        Returns:
            [`FusionMatchOutput`]

        Raises:
            `ValueError`: neither pictures nor texts are given, a loss is asked for with one of them missing or with
            unequal numbers, or attentions or hidden states are asked for in mini-batches.
        """
        has_text = input_ids is not None or text_features is not None
        has_image = pixel_values is not None or vision_features is not None
        if not has_text and not has_image:
            raise ValueError("Pass `pixel_values` (pictures), `input_ids` (texts) or both; got neither.")

        image_embeds, text_embeds, vision_outputs, text_outputs = None, None, None, None
        if has_image:
            inputs = {"vision_features": vision_features, "pixel_values": pixel_values}
            vision_outputs = self._in_parts(
                self.get_image_features,
                inputs,
                mini_batch_size,
                interpolate_pos_encoding=interpolate_pos_encoding,
                **kwargs,
            )
            image_embeds = l2_normalize(vision_outputs.pooler_output)
        if has_text:
            inputs = {
                "text_features": text_features,
                "input_ids": input_ids,
                "attention_mask": attention_mask,
                "token_type_ids": token_type_ids,
                "position_ids": position_ids,
            }
            text_outputs = self._in_parts(self.get_text_features, inputs, mini_batch_size, **kwargs)
            text_embeds = l2_normalize(text_outputs.pooler_output)

        logits_per_text, loss = None, None
        if has_image and has_text:
            logits_per_text = self.similarity(text_embeds, image_embeds)
        if return_loss:
            if logits_per_text is None or logits_per_text.shape[0] != logits_per_text.shape[1]:
                raise ValueError(
                    f"`return_loss=True` needs as many pictures as texts, got "
                    f"{0 if image_embeds is None else len(image_embeds)} pictures and "
                    f"{0 if text_embeds is None else len(text_embeds)} texts."
                )
            positives = None if product_ids is None else product_ids[:, None] == product_ids[None, :]
            loss = infonce_loss(logits_per_text, positives)
        return FusionMatchOutput(
            loss=loss,
            logits_per_image=None if logits_per_text is None else logits_per_text.t(),
            logits_per_text=logits_per_text,
            text_embeds=text_embeds,
            image_embeds=image_embeds,
            text_model_output=text_outputs,
            vision_model_output=vision_outputs,
        )


__all__ = ["FusionMatchModel", "FusionMatchPreTrainedModel"]

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
"""What training minimises: named components of the loss, and their weights."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from ..losses_fusionmatch import CONTRASTIVE_LOSSES, ConceptDivergenceLoss, ContrastiveLoss
from ..outputs_fusionmatch import FusionMatchOutput
from .adapters import model_parts, peft_base, trains, unwrap_model
from .arguments import FusionMatchTrainingArguments
from .data import SharedItems
from .distributed import gather_with_grad, mean_value
from .weighting import LossWeighting


logger = logging.getLogger(__name__)


# Component -> the field of a tower's output that it compares; `None` is the final embedding.
_EMBEDS = {"fused": None, "instance": "instance_embeds", "consensus": "consensus_embeds"}


@dataclass
class BatchPairs:
    """
    Which texts and pictures of a batch belong together.

    Args:
        positives (`torch.BoolTensor` of shape `(texts, images)`):
            Of the batch of all processes: True where the product is the same.
        own_positives (`torch.BoolTensor` of shape `(texts, images)`):
            The same for what is in this process.
        ignored, own_ignored (`torch.BoolTensor` of these shapes, *optional*):
            Pairs that are no negatives ([`~fusionmatch.training.data.SharedItems`]).
    """

    positives: torch.Tensor
    own_positives: torch.Tensor
    ignored: torch.Tensor | None = None
    own_ignored: torch.Tensor | None = None

    @classmethod
    def gather(
        cls,
        text_products: torch.Tensor,
        image_products: torch.Tensor,
        text_names: torch.Tensor | None = None,
        image_names: torch.Tensor | None = None,
        shared: SharedItems | None = None,
    ) -> "BatchPairs":
        """Of the products in this process, and of the names of texts and pictures where products share some."""
        products = text_products, image_products
        every = tuple(gather_with_grad(part) for part in products)
        pairs = cls(every[0][:, None] == every[1][None, :], text_products[:, None] == image_products[None, :])
        if shared and text_names is not None and image_names is not None:
            pairs.ignored = shared.ignored(*every, gather_with_grad(text_names), gather_with_grad(image_names))
            alone = every[0] is text_products
            pairs.own_ignored = pairs.ignored if alone else shared.ignored(*products, text_names, image_names)
        return pairs


class MatchingObjective(nn.Module):
    r"""
    The named components of the loss and their weights.

    | component | what it compares |
    |---|---|
    | `fused` | the embeddings of texts and pictures, contrastively |
    | `instance` | what the feature levels alone give, contrastively; needs a fusion branch |
    | `consensus` | what the concepts alone give, contrastively; needs concepts |
    | `concept` | the concept distributions, by their divergence, with each other and with labels; needs concepts |
    | `matching` | texts and pictures looked at together, in this process; needs a ranking stage |

    Args:
        components (`Sequence[str]`):
            Which of them.
        contrastive ([`~fusionmatch.losses_fusionmatch.ContrastiveLoss`]):
            The contrastive loss.
        weighting ([`LossWeighting`]):
            Weights of these components.
        divergence ([`~fusionmatch.losses_fusionmatch.ConceptDivergenceLoss`]):
            The loss `concept`.
        mini_batch_size (`int`, *optional*):
            Pairs that `matching` looks at at a time.
    """

    def __init__(
        self,
        components: Sequence[str],
        contrastive: ContrastiveLoss,
        weighting: LossWeighting,
        divergence: ConceptDivergenceLoss,
        mini_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        self.components = tuple(components)
        self.contrastive = contrastive
        self.weighting = weighting
        self.divergence = divergence
        self.mini_batch_size = mini_batch_size

    @classmethod
    def from_arguments(cls, args: FusionMatchTrainingArguments, model: nn.Module) -> "MatchingObjective":
        """
        The objective that training arguments ask for.

        Raises:
            `ValueError`: the model lacks what a component compares, or has a ranking stage that none trains.
        """
        core = unwrap_model(model)
        concepts = "concepts (`fusionmatch concepts`)"
        needs = {
            "instance": ("feature levels", core.vision_fusion),
            "consensus": (concepts, core.concept_bank),
            "concept": (concepts, core.concept_bank),
            "matching": ("a ranking stage (`--ranking_stage True`)", model_parts(model).get("ranker")),
        }
        for name in args.loss_components:
            part, module = needs.get(name, ("", core))
            if module is None:
                raise ValueError(f"The loss component `{name}` needs a model with {part}; this one has none.")
        ranker = needs["matching"][1]
        if ranker is not None and "matching" not in args.loss_components and trains(ranker):
            raise ValueError(
                "The base has a ranking stage, and no component of the loss trains it along. Add it "
                "(`--loss_components fused matching`), or load the base with `ranking_stage=False`."
            )
        if "fused" not in args.loss_components and core.vision_fusion is not None:
            gates = [parameter for name, parameter in core.named_parameters() if name.endswith("residual.gate")]
            if "instance" in args.loss_components and not any(gate.any() for gate in gates):
                raise ValueError(
                    "Without the component `fused` the gates stay where they are, and they are at 0: what `instance` "
                    "trains would never be used. Add `fused`, or open the gates: `gate_init_value` 0.5 in "
                    "`--config_overrides`, on a base whose fusion was never trained."
                )
        if args.contrastive_loss == "sigmoid" and core.similarity.logit_bias is None:
            logger.warning(
                "The sigmoid loss calls nearly all pairs negatives and starts far off without a bias: give a fresh "
                'base `--config_overrides \'{"logit_scale_init_value": 10, "logit_bias_init_value": -10}\'`.'
            )
        settings = {}
        if args.contrastive_loss == "triplet":
            settings = {"margin": args.triplet_margin, "warmup_steps": args.triplet_warmup_steps}
        weighting = LossWeighting(args.loss_components, args.loss_weighting, fixed=args.loss_weights, seed=args.seed)
        return cls(
            args.loss_components,
            CONTRASTIVE_LOSSES[args.contrastive_loss](**settings),
            weighting,
            ConceptDivergenceLoss(args.symmetric_concepts),
            args.mini_batch_size,
        )

    @property
    def main_component(self) -> str:
        """The component that is watched: the first contrastive one, or the first of all."""
        return next((name for name in self.components if name in _EMBEDS), self.components[0])

    def chance_level(self, model: nn.Module, pairs: BatchPairs, step: int = 0) -> float | None:
        """
        The main component of a batch with these pairs if all similarities were 0; that of `matching` if each pair were
        as likely as not to belong together. `concept` has none.
        """
        if self.main_component in ("concept", "matching"):
            return math.log(2) if self.main_component == "matching" else None
        similarities = torch.zeros(pairs.positives.shape, device=pairs.positives.device)
        with torch.no_grad():
            scaled = unwrap_model(model).similarity.scale(similarities)
            return self.contrastive(similarities, scaled.float(), pairs.positives, step, pairs.ignored).item()

    def losses(
        self,
        model: nn.Module,
        outputs: FusionMatchOutput,
        pairs: BatchPairs,
        step: int = 0,
        text_labels: torch.Tensor | None = None,
        image_labels: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """
        The components for the batch of all processes, each a mean over it.

        Args:
            model ([`FusionMatchModel`], [`FusionMatchForImageTextRetrieval`] or a `PeftModel` around them):
                The model.
            outputs ([`FusionMatchOutput`]):
                Its outputs for texts and pictures of this process.
            pairs ([`BatchPairs`]):
                Which of them belong together; those of one product are all each other's positives.
            step (`int`, *optional*, defaults to 0):
                Optimizer steps done.
            text_labels, image_labels (`torch.BoolTensor` of shape `(items, concepts)`, *optional*):
                True for the concepts that are known of an item.

        Returns:
            `dict[str, torch.Tensor]`: a scalar for each component.
        """
        texts, images = outputs.text_model_output, outputs.vision_model_output
        similarity = unwrap_model(model).similarity
        losses = {}
        for name in self.components:
            if name == "matching":
                own = pairs.own_positives, pairs.own_ignored
                losses[name] = mean_value(peft_base(model).matching_loss(outputs, *own, self.mini_batch_size))
                continue
            if name == "concept":
                losses[name] = self.divergence(
                    gather_with_grad(texts.concept_log_probs),
                    gather_with_grad(images.concept_log_probs),
                    pairs.positives,
                    *(None if labels is None else gather_with_grad(labels) for labels in (text_labels, image_labels)),
                )
                continue
            field = _EMBEDS[name]
            sides = (outputs.text_embeds, outputs.image_embeds) if field is None else (texts[field], images[field])
            text_embeds, image_embeds = (gather_with_grad(side) for side in sides)
            losses[name] = self.contrastive(
                text_embeds @ image_embeds.t(),
                similarity(text_embeds, image_embeds),
                pairs.positives,
                step,
                pairs.ignored,
            )
        return losses

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
"""
Losses of image-text matching, each as a function and as a thin module.

All of them take a table of texts by images and know which pairs belong together (`positives`): the texts and pictures
of one product are all each other's positives, never negatives. All of them are means over the batch, so that several
can be weighted against each other.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn


def _prepare(
    table: torch.Tensor, positives: torch.Tensor | None, ignored: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The table in float32 at least, the positives (by default the diagonal), and the negatives."""
    if table.ndim != 2:
        raise ValueError(f"A loss takes a table of shape (texts, images), got shape {tuple(table.shape)}.")
    if positives is None:
        positives = torch.eye(*table.shape, dtype=torch.bool, device=table.device)
    if positives.shape != table.shape:
        raise ValueError(
            f"`positives` has the shape {tuple(positives.shape)}, the table of texts by images {tuple(table.shape)}; "
            "they must be the same."
        )
    if ignored is not None and ignored.shape != table.shape:
        raise ValueError(
            f"`ignored` has the shape {tuple(ignored.shape)}, the table of texts by images {tuple(table.shape)}; "
            "they must be the same."
        )
    positives = positives.bool()
    negatives = ~positives if ignored is None else ~(positives | ignored.bool())
    return (table if table.dtype == torch.float64 else table.float()), positives, negatives


def _without_ignored(logits: torch.Tensor, positives: torch.Tensor, negatives: torch.Tensor) -> torch.Tensor:
    """Logits of pairs that are neither take no part in a softmax, and get a gradient of exactly 0."""
    return logits.masked_fill(~(positives | negatives), torch.finfo(logits.dtype).min)


def _mean_where(values: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Mean of the values of the rows that count; 0 where none does."""
    return torch.where(counts, values, 0).sum() / counts.sum().clamp(min=1)


def infonce_loss(
    logits_per_text: torch.Tensor, positives: torch.Tensor | None = None, ignored: torch.Tensor | None = None
) -> torch.Tensor:
    r"""
    Symmetric InfoNCE with any number of positives: the mean over texts and over images of

    $$-\frac{1}{|P_i|} \sum_{j \in P_i} \log \frac{e^{s_{ij}}}{\sum_k e^{s_{ik}}}$$

    Each row's target is uniform over its positives $P_i$. With one positive a row it is CLIP's loss (arXiv 2103.00020,
    figure 3); with several it is the outer form of supervised contrastive learning (arXiv 2004.11362, equation 2).
    The positives of a row share it: one that has more than its even share gives way to the others of its product,
    while together they are never pushed away.

    Args:
        logits_per_text (`torch.Tensor` of shape `(texts, images)`):
            Scaled similarities.
        positives (`torch.BoolTensor` of shape `(texts, images)`, *optional*):
            True where text and image belong together. Defaults to the diagonal. Rows (or columns) without a positive
            do not count.
        ignored (`torch.BoolTensor` of shape `(texts, images)`, *optional*):
            True for pairs that are no negatives either, since nobody could tell them from positives: the same picture
            or text of another product. Positives among them stay positives.

    Returns:
        `torch.Tensor`: the loss, a scalar, 0 or above.

    Raises:
        `ValueError`: the shapes do not fit.
    """
    logits, positives, negatives = _prepare(logits_per_text, positives, ignored)
    logits = _without_ignored(logits, positives, negatives)

    def one_way(logits: torch.Tensor, positives: torch.Tensor) -> torch.Tensor:
        count = positives.sum(dim=1)
        likelihood = torch.where(positives, logits.log_softmax(dim=1), 0).sum(dim=1)
        return _mean_where(-likelihood / count.clamp(min=1), count > 0)

    return (one_way(logits, positives) + one_way(logits.t(), positives.t())) / 2


def sigmoid_loss(
    logits_per_text: torch.Tensor, positives: torch.Tensor | None = None, ignored: torch.Tensor | None = None
) -> torch.Tensor:
    r"""
    SigLIP's loss (arXiv 2303.15343, algorithm 1): every pair of the table is a decision of its own,

    $$-\frac{1}{n} \sum_{ij} \log \sigma(z_{ij} s_{ij})$$

    with z = 1 for positives and -1 for all others, and n the longer side of the table. The logits should hold a bias
    (`logit_bias_init_value=-10`): nearly all pairs are negatives.

    Args, Returns, Raises: as [`infonce_loss`].
    """
    logits, positives, negatives = _prepare(logits_per_text, positives, ignored)
    likelihood = nn.functional.logsigmoid(torch.where(positives, logits, -logits))
    return -torch.where(positives | negatives, likelihood, 0).sum() / max(logits.shape)


def triplet_loss(
    similarities: torch.Tensor,
    positives: torch.Tensor | None = None,
    margin: float = 0.2,
    hardest: bool = True,
    ignored: torch.Tensor | None = None,
) -> torch.Tensor:
    r"""
    Max of hinges (VSE++, arXiv 1707.05612, equation 6): the mean over positive pairs of

    $$[m - s_{ij} + \max_{k \notin P_i} s_{ik}]_+ + [m - s_{ij} + \max_{k \notin P_j} s_{kj}]_+$$

    Args:
        similarities (`torch.Tensor` of shape `(texts, images)`):
            Cosine similarities, without a scale.
        positives (`torch.BoolTensor` of shape `(texts, images)`, *optional*):
            True where text and image belong together. Defaults to the diagonal.
        margin (`float`, *optional*, defaults to 0.2):
            The margin m.
        hardest (`bool`, *optional*, defaults to `True`):
            Whether the hardest negative counts alone; otherwise the mean of the hinges over all negatives, from which
            training with the hardest one is better begun.
        ignored (`torch.BoolTensor` of shape `(texts, images)`, *optional*):
            True for pairs that are no negatives either, see [`infonce_loss`].

    Returns:
        `torch.Tensor`: the loss, a scalar, from 0 to 2 * (margin + 2).

    Raises:
        `ValueError`: the shapes do not fit.
    """
    similarities, positives, negatives = _prepare(similarities, positives, ignored)

    def one_way(similarities: torch.Tensor, positives: torch.Tensor, negatives: torch.Tensor) -> torch.Tensor:
        if hardest:
            rival = similarities.masked_fill(~negatives, -torch.inf).amax(dim=1, keepdim=True)
            # Without a negative in its row a pair has no rival: the hinge of minus infinity is 0.
            hinges = (margin - similarities + rival).clamp(min=0)
            return _mean_where(hinges, positives)
        # Of the positive pairs alone: with several texts a picture, all pairs by all negatives would fill the memory.
        row, column = positives.nonzero(as_tuple=True)
        hinges = (margin - similarities[row, column, None] + similarities[row]).clamp(min=0)
        mean = torch.where(negatives[row], hinges, 0).sum(dim=1) / negatives[row].sum(dim=1).clamp(min=1)
        return mean.sum() / max(1, len(row))

    return one_way(similarities, positives, negatives) + one_way(similarities.t(), positives.t(), negatives.t())


def complementary_contrastive_loss(
    logits_per_text: torch.Tensor, positives: torch.Tensor | None = None, ignored: torch.Tensor | None = None
) -> torch.Tensor:
    r"""
    Complementary contrastive loss (RCL, TPAMI 2023, "Cross-Modal Retrieval With Partially Mismatched Pairs"): learns
    only from what does *not* belong together, the mean over texts and over images of

    $$-\sum_{j \notin P_i} \log (1 - p_{ij}), \quad p_{ij} = \frac{e^{s_{ij}}}{\sum_k e^{s_{ik}}}$$

    A pair that is wrongly called positive is never pulled together by force: it only lacks the push. Meant for
    catalogues with swapped pictures and texts.

    Args, Returns, Raises: as [`infonce_loss`].
    """
    logits, positives, negatives = _prepare(logits_per_text, positives, ignored)
    logits = _without_ignored(logits, positives, negatives)

    def one_way(logits: torch.Tensor, positives: torch.Tensor, negatives: torch.Tensor) -> torch.Tensor:
        # A probability of exactly 1 for a negative would be an infinite loss.
        chance = logits.softmax(dim=1).clamp(max=1 - 1e-6)
        losses = torch.where(negatives, -torch.log1p(-chance), 0).sum(dim=1)
        return _mean_where(losses, positives.any(dim=1))

    return (one_way(logits, positives, negatives) + one_way(logits.t(), positives.t(), negatives.t())) / 2


def concept_divergence(
    text_concepts: torch.Tensor,
    image_concepts: torch.Tensor,
    positives: torch.Tensor | None = None,
    symmetric: bool = False,
    text_labels: torch.Tensor | None = None,
    image_labels: torch.Tensor | None = None,
    label_share: float = 0.35,
) -> torch.Tensor:
    r"""
    Kullback-Leibler divergence from the texts' to the images' concept distributions (CVSE, arXiv 2007.08883),
    $KL(p^{text}_i \| p^{image}_j)$, the mean over texts of the mean over their positives.

    That alone makes the two agree, on whichever concepts. With labels the concepts mean their words: a share $w$ of
    the loss is the mean over both sides of $KL(l_i \| p_i)$, with $l_i$ uniform over the concepts that are known of an
    item. CVSE mixes the labels into the text's distribution with that share instead; here both sides are tied to them.

    Args:
        text_concepts (`torch.Tensor` of shape `(texts, concepts)`):
            Log-probabilities of the concepts for each text.
        image_concepts (`torch.Tensor` of shape `(images, concepts)`):
            Log-probabilities of the concepts for each image.
        positives (`torch.BoolTensor` of shape `(texts, images)`, *optional*):
            True where text and image belong together. Defaults to the diagonal.
        symmetric (`bool`, *optional*, defaults to `False`):
            Whether to take the mean of both directions.
        text_labels, image_labels (`torch.BoolTensor` of the shapes of the concepts, *optional*):
            True for the concepts that are known of an item. Items without any are left out of that share.
        label_share (`float`, *optional*, defaults to 0.35):
            The share w; 0.35 is CVSE's.

    Returns:
        `torch.Tensor`: the divergence in nats, a scalar, 0 or above.

    Raises:
        `ValueError`: the shapes do not fit.
    """

    def one_way(first: torch.Tensor, second: torch.Tensor, positives: torch.Tensor | None) -> torch.Tensor:
        share = first.exp()
        table = (share * first).sum(dim=1, keepdim=True) - share @ second.t()
        table, positives, _ = _prepare(table, positives)
        count = positives.sum(dim=1)
        return _mean_where(torch.where(positives, table, 0).sum(dim=1) / count.clamp(min=1), count > 0)

    def to_labels(log_probs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        log_probs, labels, _ = _prepare(log_probs, labels)
        count = labels.sum(dim=1)
        entropy = count.clamp(min=1).log()
        return _mean_where(-torch.where(labels, log_probs, 0).sum(dim=1) / count.clamp(min=1) - entropy, count > 0)

    if (text_labels is None) != (image_labels is None):
        raise ValueError("Labels were given for one side alone; the concepts of both are tied to them, or of none.")
    if text_concepts.shape[-1] != image_concepts.shape[-1]:
        raise ValueError(
            f"Texts have {text_concepts.shape[-1]} concepts and images {image_concepts.shape[-1]}; they must be the "
            "same."
        )
    loss = one_way(text_concepts, image_concepts, positives)
    if symmetric:
        back = one_way(image_concepts, text_concepts, None if positives is None else positives.t())
        loss = (loss + back) / 2
    if text_labels is None:
        return loss
    named = (to_labels(text_concepts, text_labels) + to_labels(image_concepts, image_labels)) / 2
    return (1 - label_share) * loss + label_share * named


def matching_loss(
    logits_per_text: torch.Tensor,
    match: Callable[[torch.LongTensor, torch.LongTensor], torch.Tensor],
    positives: torch.Tensor | None = None,
    sample: bool = True,
    ignored: torch.Tensor | None = None,
) -> torch.Tensor:
    r"""
    Image-text matching loss with hard negatives mined in the batch (ALBEF, arXiv 2107.07651, section 3.2): binary
    cross-entropy over a positive pair of each text, a negative picture for each text and a negative text for each
    picture. A negative is drawn with the probability that the similarity gives it, among those of other products.

    Negatives weigh as much as positives together, so that the loss at chance is ln 2.

    Args:
        logits_per_text (`torch.Tensor` of shape `(texts, images)`):
            Scaled similarities, from which negatives are drawn. No gradient goes back through the drawing.
        match (`Callable`):
            Takes indices of texts and of images, (pairs,) each, and gives the log-odds that they belong together.
        positives (`torch.BoolTensor` of shape `(texts, images)`, *optional*):
            True where text and image belong together. Defaults to the diagonal.
        sample (`bool`, *optional*, defaults to `True`):
            Whether to draw; otherwise the likeliest is taken, and the loss is the same at every call.
        ignored (`torch.BoolTensor` of shape `(texts, images)`, *optional*):
            True for pairs that are never drawn as negatives, see [`infonce_loss`].

    Returns:
        `torch.Tensor`: the loss, a scalar, 0 or above.

    Raises:
        `ValueError`: the shapes do not fit.
    """
    logits, positives, negatives = _prepare(logits_per_text.detach(), positives, ignored)

    def draw(weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        rows = weights.sum(dim=1).nonzero().flatten()
        if not sample or not len(rows):
            return rows, weights[rows].argmax(dim=1)
        return rows, torch.multinomial(weights[rows], 1).flatten()

    texts, images = draw(positives.float())
    # The floor lets a negative be drawn where all the probability is on the positives. Of broken logits the loss is to
    # tell, not the drawing.
    logits = logits.nan_to_num()
    negative_of_text = draw((logits.softmax(dim=1) + 1e-6) * negatives)
    columns, negative_text = draw(((logits.softmax(dim=0) + 1e-6) * negatives).t())
    pairs = [(texts, images), negative_of_text, (negative_text, columns)]
    found = match(torch.cat([pair[0] for pair in pairs]), torch.cat([pair[1] for pair in pairs]))
    found = found if found.dtype == torch.float64 else found.float()
    right, wrong = found[: len(texts)], found[len(texts) :]
    softplus = nn.functional.softplus
    return (softplus(-right).sum() / max(1, len(right)) + softplus(wrong).sum() / max(1, len(wrong))) / 2


class ContrastiveLoss(nn.Module):
    """
    A contrastive loss of texts and images; the base of the thin modules.

    `forward(similarities, logits, positives, step, ignored)` takes cosine similarities and their scaled form, both of
    shape (texts, images), the positives of the same shape, the number of optimizer steps so far and the pairs that do
    not count, and returns a scalar.
    """

    name = ""
    citation = ""

    def get_config_dict(self) -> dict[str, Any]:
        """The settings, from which the same loss is built again."""
        return {}

    def extra_repr(self) -> str:
        return ", ".join(f"{key}={value}" for key, value in self.get_config_dict().items())


class InfoNCELoss(ContrastiveLoss):
    """[`infonce_loss`] as a module."""

    name = "infonce"
    citation = (
        "Radford et al., Learning Transferable Visual Models From Natural Language Supervision, arXiv 2103.00020"
    )

    def forward(
        self,
        similarities: torch.Tensor,
        logits: torch.Tensor,
        positives: torch.Tensor,
        step: int = 0,
        ignored: torch.Tensor | None = None,
    ) -> torch.Tensor:
        return infonce_loss(logits, positives, ignored)


class SigmoidLoss(ContrastiveLoss):
    """[`sigmoid_loss`] as a module."""

    name = "sigmoid"
    citation = "Zhai et al., Sigmoid Loss for Language Image Pre-Training, arXiv 2303.15343"

    def forward(
        self,
        similarities: torch.Tensor,
        logits: torch.Tensor,
        positives: torch.Tensor,
        step: int = 0,
        ignored: torch.Tensor | None = None,
    ) -> torch.Tensor:
        return sigmoid_loss(logits, positives, ignored)


class TripletLoss(ContrastiveLoss):
    """
    [`triplet_loss`] as a module.

    Args:
        margin (`float`, *optional*, defaults to 0.2):
            Margin between a positive pair and its negatives, in cosine.
        warmup_steps (`int`, *optional*, defaults to 0):
            Optimizer steps with the mean over all negatives before the hardest one counts alone; without them the
            embeddings may collapse into a point (arXiv 2011.04305 warms up for an epoch).

    Raises:
        `ValueError`: a setting outside its range.
    """

    name = "triplet"
    citation = "Faghri et al., VSE++: Improving Visual-Semantic Embeddings with Hard Negatives, arXiv 1707.05612"

    def __init__(self, margin: float = 0.2, warmup_steps: int = 0) -> None:
        super().__init__()
        if not 0 < margin <= 2:
            raise ValueError(f"`margin` must lie in (0, 2], got {margin}.")
        if warmup_steps < 0:
            raise ValueError(f"`warmup_steps` must be 0 or more, got {warmup_steps}.")
        self.margin = margin
        self.warmup_steps = warmup_steps

    def get_config_dict(self) -> dict[str, Any]:
        return {"margin": self.margin, "warmup_steps": self.warmup_steps}

    def forward(
        self,
        similarities: torch.Tensor,
        logits: torch.Tensor,
        positives: torch.Tensor,
        step: int = 0,
        ignored: torch.Tensor | None = None,
    ) -> torch.Tensor:
        return triplet_loss(similarities, positives, self.margin, step >= self.warmup_steps, ignored)


class ComplementaryContrastiveLoss(ContrastiveLoss):
    """[`complementary_contrastive_loss`] as a module."""

    name = "complementary"
    citation = "Hu et al., Cross-Modal Retrieval With Partially Mismatched Pairs, IEEE TPAMI 2023"

    def forward(
        self,
        similarities: torch.Tensor,
        logits: torch.Tensor,
        positives: torch.Tensor,
        step: int = 0,
        ignored: torch.Tensor | None = None,
    ) -> torch.Tensor:
        return complementary_contrastive_loss(logits, positives, ignored)


class ConceptDivergenceLoss(nn.Module):
    """
    [`concept_divergence`] as a module.

    Args:
        symmetric (`bool`, *optional*, defaults to `False`):
            Whether to take the mean of both directions.
        label_share (`float`, *optional*, defaults to 0.35):
            Share of the labels in [0, 1].

    Raises:
        `ValueError`: a setting outside its range.
    """

    name = "concept"
    citation = "Wang et al., Consensus-Aware Visual-Semantic Embedding for Image-Text Matching, arXiv 2007.08883"

    def __init__(self, symmetric: bool = False, label_share: float = 0.35) -> None:
        super().__init__()
        if not 0 <= label_share <= 1:
            raise ValueError(f"`label_share` must lie in [0, 1], got {label_share}.")
        self.symmetric = symmetric
        self.label_share = label_share

    def get_config_dict(self) -> dict[str, Any]:
        """The settings, from which the same loss is built again."""
        return {"symmetric": self.symmetric, "label_share": self.label_share}

    def forward(
        self,
        text_concepts: torch.Tensor,
        image_concepts: torch.Tensor,
        positives: torch.Tensor | None = None,
        text_labels: torch.Tensor | None = None,
        image_labels: torch.Tensor | None = None,
    ) -> torch.Tensor:
        labels = text_labels, image_labels
        return concept_divergence(
            text_concepts, image_concepts, positives, self.symmetric, *labels, label_share=self.label_share
        )


class MatchingLoss(nn.Module):
    """
    [`matching_loss`] as a module; negatives are drawn in training, and the likeliest are taken in evaluation.
    """

    name = "matching"
    citation = "Li et al., Align before Fuse, arXiv 2107.07651"

    def get_config_dict(self) -> dict[str, Any]:
        """The settings, from which the same loss is built again."""
        return {}

    def forward(
        self,
        logits_per_text: torch.Tensor,
        match: Callable[[torch.LongTensor, torch.LongTensor], torch.Tensor],
        positives: torch.Tensor | None = None,
        ignored: torch.Tensor | None = None,
    ) -> torch.Tensor:
        return matching_loss(logits_per_text, match, positives, self.training, ignored)


CONTRASTIVE_LOSSES: dict[str, type[ContrastiveLoss]] = {
    loss.name: loss for loss in (InfoNCELoss, SigmoidLoss, TripletLoss, ComplementaryContrastiveLoss)
}

__all__ = [
    "CONTRASTIVE_LOSSES",
    "ComplementaryContrastiveLoss",
    "ConceptDivergenceLoss",
    "ContrastiveLoss",
    "InfoNCELoss",
    "MatchingLoss",
    "SigmoidLoss",
    "TripletLoss",
    "complementary_contrastive_loss",
    "concept_divergence",
    "infonce_loss",
    "matching_loss",
    "sigmoid_loss",
    "triplet_loss",
]

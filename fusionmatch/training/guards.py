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
"""Guards: a training that cannot succeed is stopped within its first steps, and the cause is named."""

import math
from collections import deque

import torch


class TrainingStoppedError(ValueError):
    """A training was stopped because it could not succeed; the message says why and what to change."""


def effective_rank(embeds: torch.Tensor, most: int = 128) -> float:
    """
    Effective number of dimensions that embeddings of shape (items, dimensions) use: the exponential of the entropy of
    their normalised singular values (Roy and Vetterli, EUSIPCO 2007), from 1 to the smaller side; of the first `most`
    items, because it is computed at every step.
    """
    # On the CPU: not every accelerator has double precision.
    embeds = embeds[:most].detach().cpu().double()
    values = torch.linalg.eigvalsh(embeds @ embeds.t()).clamp(min=0).sqrt()
    shares = values / values.sum().clamp(min=1e-12)
    return math.exp(torch.special.entr(shares).sum().item())


def alignment(texts: torch.Tensor, images: torch.Tensor, positives: torch.Tensor) -> float:
    """
    Mean squared distance of texts (texts, p) to their pictures (images, p), unit vectors; 0 where all coincide, 2 for
    pairs at random (arXiv 2005.10242, equation 4).
    """
    distances = 2 - 2 * texts.detach().float() @ images.detach().float().t()
    return (distances * positives).sum().item() / max(1, int(positives.sum()))


def uniformity(embeds: torch.Tensor, most: int = 512) -> float:
    """
    Logarithm of the mean Gaussian potential of all pairs of embeddings (items, p), unit vectors; 0 where all coincide,
    near -4 where they are spread evenly (arXiv 2005.10242, equation 5, t = 2); of the first `most`.
    """
    distances = torch.pdist(embeds[:most].detach().float()).square()
    return distances.mul(-2).exp().mean().log().item() if len(distances) else 0.0


class TrainingGuard:
    r"""
    Watches the main component of the loss, the scale and the embeddings of a batch of each optimizer step, all
    processes together. Where the main component compares no embeddings (`matching` or `concept` alone) the first
    two causes are looked for. A scale without a ceiling may reach 10,000, and while `triplet` takes the mean over
    negatives (`triplet_warmup_steps`) nothing is looked for.

    | cause | what shows it |
    |---|---|
    | learning rate too high | a loss 1.5 times its chance level and its start, or weights that grow tenfold |
    | scale out of bounds | the scale has left its ceiling behind by a factor of ten, or fallen below 1 |
    | collapse | the embeddings of pictures, or of texts, use fewer than 1.5 dimensions |
    | the same | their uniformity is a tenth of what it was, with the loss at its chance level |
    | nothing is learned | after the first steps the loss is below neither its chance level nor its start |

    Args:
        patience (`int`, *optional*, defaults to 10):
            Steps for which the first two signs have to last. A collapse has to last twice as long where the embeddings
            were wider before, four times where they never were or only the uniformity shows it: many a model begins in
            a narrow cone or passes through one.
        first_steps (`int`, *optional*, defaults to 50):
            Steps after which a loss that never moved counts as flat, and during which weights are watched.
    """

    def __init__(self, patience: int = 10, first_steps: int = 50) -> None:
        self.patience = patience
        self.first_steps = first_steps
        self._losses: deque[float] = deque(maxlen=patience)
        self._first: list[float] = []
        self._signs: dict[str, int] = {}
        self._widest: dict[str, float] = {}
        self._spread: dict[str, float] = {}
        self._steps = 0

    @property
    def early(self) -> bool:
        """Whether the next batch is one of the first."""
        return self._steps < self.first_steps

    def _lasts(self, name: str, shows: bool, times: int = 1) -> bool:
        self._signs[name] = self._signs.get(name, 0) + 1 if shows else 0
        return self._signs[name] >= times * self.patience

    def check(
        self,
        loss: float,
        chance: float | None,
        scale: float,
        max_scale: float,
        texts: torch.Tensor | None,
        images: torch.Tensor | None,
        learning_rate: float,
        growth: float,
        step: int,
    ) -> None:
        """
        Takes the batch of one step.

        Args:
            loss, chance (`float`):
                The main component of the loss, and what it would be if all similarities were equal, where that is
                known.
            scale, max_scale (`float`):
                Scale of the similarity without its ceiling, and the ceiling (`inf` for none).
            texts, images (`torch.Tensor` of shape `(items, projection_dim)`):
                Embeddings, unit length; `None` where the loss does not train them.
            learning_rate (`float`):
                Rate of this step.
            growth (`float`):
                Norm of the trained weights as a multiple of what it was in the beginning.
            step (`int`):
                Number of the optimizer step, from 1, for the message.

        Raises:
            [`TrainingStoppedError`]: one of the causes above.
        """
        self._steps += 1
        self._losses.append(loss)
        if len(self._first) < self.patience:
            self._first.append(loss)
        # The first loss alone: with a rate far too high the second is already beyond.
        level = self._first[0] if chance is None else max(chance, self._first[0])
        by_chance = "" if chance is None else f"chance level {chance:.3g}, "
        now = f"at step {step} the loss is {loss:.3g} ({by_chance}first {self._first[0]:.3g})"
        if self._lasts("rate", loss > 1.5 * level) or growth > 10:
            raise TrainingStoppedError(
                f"The learning rate ({learning_rate:.2g} now) is too high: {now}, and the weights have grown "
                f"{growth:.3g} times. Try a tenth of `--learning_rate`."
            )
        if self._lasts("scale", scale > 10 * min(max_scale, 1e3) or scale < 1):
            raise TrainingStoppedError(
                f"The scale of the similarity has run away to {scale:.3g} (ceiling {max_scale:.3g}); {now}. Lower "
                "`--learning_rate`, or start from another `logit_scale_init_value`."
            )
        if texts is None or images is None:
            return
        for name, embeds in (("pictures", images), ("texts", texts)):
            rank = effective_rank(embeds) if len(embeds) > 3 else math.inf
            if rank < math.inf:
                self._widest[name] = max(rank, self._widest.get(name, 0.0))
            spread = uniformity(embeds)
            self._spread[name] = min(spread, self._spread.get(name, 0.0))
            # Similarities that are all alike give the chance level. A loss that began above it, on the base of another
            # corpus, has fallen then; and in a cone that is this narrow small differences still use many dimensions.
            narrow = self._spread[name] < -0.5 and spread > 0.1 * self._spread[name]
            alike = narrow and chance is not None and loss > 0.98 * chance
            few = self._lasts(name, rank < 1.5, times=2 if self._widest.get(name, 0.0) >= 3 else 4)
            # Both are counted at every step.
            if self._lasts(f"{name} alike", alike, times=4) or few:
                raise TrainingStoppedError(
                    f"The embeddings of {name} have collapsed: {len(embeds)} of them use {rank:.1f} dimensions "
                    f"(uniformity {spread:.2g}, 0 where all coincide); {now}. Check that they differ (all "
                    "one placeholder picture, texts all alike), and lower `--learning_rate`."
                )
        if self._steps == self.first_steps:
            first, last = (sum(losses) / len(losses) for losses in (self._first, self._losses))
            if last > 0.98 * max(first, chance or 0.0):
                raise TrainingStoppedError(
                    f"Nothing is learned: {now}, and it was {first:.3g} in the first steps. Check that pictures and "
                    "texts belong together (a shuffled column?) and that something trains (`--learning_rate`, frozen "
                    "parts)."
                )

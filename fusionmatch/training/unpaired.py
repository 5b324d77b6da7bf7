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
Few labels: what a moving average of the model is sure of among unpaired pictures and texts is trained on as well.

Mean teacher (Tarvainen and Valpola, 2017, arXiv 1703.01780) with pseudo-labels above a threshold (FixMatch, arXiv
2001.07685), which here are pairs of a picture and a text that are each other's nearest.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import datasets
import torch
from torch import nn
from torch.utils.data import Sampler
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..catalogue.duplicates import text_key
from .data import PairDataset, product_id, unpaired_product
from .distributed import from_main_process
from .sampling import spread


# Similarities at a time, for memory.
_SCORES = 2**24


def mutual_nearest(
    images: torch.Tensor, texts: torch.Tensor, scale: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    r"""
    Pictures and texts that are each other's nearest, and how sure that is: the smaller of two probabilities
    softmax(scale · cosine), that of the text among all texts for the picture and of the picture for the text.

    Args:
        images (`torch.Tensor` of shape `(n, d)`), texts (`torch.Tensor` of shape `(m, d)`):
            Unit vectors.
        scale (`float`):
            The scale of the model's similarities.

    Returns:
        `(torch.LongTensor, torch.LongTensor, torch.Tensor)`: picture, text and confidence in (0, 1] of each pair.
    """
    best_image, image_score, image_total = [], [], []
    best = torch.full((len(images),), -torch.inf)
    best_text, total = torch.zeros(len(images), dtype=torch.long), torch.full((len(images),), -torch.inf)
    for rows in torch.arange(len(texts)).split(max(1, _SCORES // len(images))):
        scores = scale * (texts[rows] @ images.t())
        score, image = scores.max(dim=1)
        best_image.append(image)
        image_score.append(score)
        image_total.append(scores.logsumexp(dim=1))
        score, row = scores.max(dim=0)
        better = score > best
        best, best_text = torch.where(better, score, best), torch.where(better, rows[row], best_text)
        total = torch.logaddexp(total, scores.logsumexp(dim=0))
    image = torch.cat(best_image)
    text = torch.arange(len(texts))
    mutual = best_text[image] == text
    by_text = (torch.cat(image_score) - torch.cat(image_total)).exp()
    by_image = (best - total).exp()[image]
    return image[mutual], text[mutual], torch.minimum(by_text, by_image)[mutual]


class PartlyPairedDataset(PairDataset):
    r"""
    [`PairDataset`] of which some rows have a picture only, and which has texts besides. Such a row can be asked for
    once a text was assigned to it.

    Args:
        dataset (`datasets.Dataset`):
            Rows as for [`PairDataset`]; those with empty `texts` are unpaired pictures. What their `product` says is
            not trained on.
        unpaired_texts (`datasets.Dataset`):
            Column `text`; `products` is for [`precision`](Self.precision) only.
        kwargs:
            Further arguments of [`PairDataset`].

    Raises:
        `ValueError`: there are no unpaired pictures or texts, or the pairs are of fewer than two products.
    """

    def __init__(self, dataset: datasets.Dataset, unpaired_texts: datasets.Dataset, **kwargs: Any) -> None:
        super().__init__(dataset, **kwargs)
        self.labelled = [row for row, texts in enumerate(self.texts) if texts]
        self.unlabelled = [row for row, texts in enumerate(self.texts) if not texts]
        self.unpaired_texts = list(unpaired_texts["text"])
        if not self.unlabelled or not self.unpaired_texts:
            raise ValueError(
                f"There are {len(self.unlabelled)} unpaired pictures and {len(self.unpaired_texts)} unpaired texts; "
                "to learn from them takes both."
            )
        if len({self.products[row] for row in self.labelled}) < 2:
            raise ValueError("The pairs that are known are of fewer than two products. Match some more.")
        truth = unpaired_texts["products"] if "products" in unpaired_texts.column_names else []
        self._truth = [{product_id(name) for name in names} for names in truth]
        # A text that a known product has belongs to it, whichever picture it is found for.
        known = {name: self.products[row] for row in self.labelled for name in self.text_names[row]}
        self._unpaired_names = [product_id(text_key(text)) for text in self.unpaired_texts]
        self._text_products = [known.get(name) for name in self._unpaired_names]
        # In shared memory, so that workers that live on see it as well; -1 where no text was assigned.
        self.assigned = torch.full((len(self.texts),), -1, dtype=torch.long).share_memory_()

    @property
    def all_texts(self) -> list[str]:
        """The texts of all rows, then the unpaired ones: what `text_indices` of an item count."""
        return super().all_texts + self.unpaired_texts

    @property
    def found(self) -> int:
        """Unpaired pictures that a text is assigned to in this epoch."""
        return int((self.assigned >= 0).sum())

    @property
    def precision(self) -> float | None:
        """Share of the assigned texts that are of the picture's product, `None` where that is not known."""
        rows = (self.assigned >= 0).nonzero().flatten().tolist()
        if not rows or not any(self._truth):
            return None
        return sum(self.products[row] in self._truth[self.assigned[row]] for row in rows) / len(rows)

    def product_of(self, row: int) -> int:
        """A picture that a text was assigned to is of the known product that has this text, or of one of its own."""
        if self.texts[row]:
            return self.products[row]
        text = int(self.assigned[row])
        known = None if text < 0 else self._text_products[text]
        return unpaired_product(row) if known is None else known

    def to_embed(self) -> tuple[Sequence[int], Sequence[str], Sequence[int]]:
        """The unpaired pictures and texts."""
        first = self.first_text[-1]
        return self.unlabelled, self.unpaired_texts, range(first, first + len(self.unpaired_texts))

    def __getitem__(self, index: int) -> dict[str, Any]:
        if self.texts[index]:
            return super().__getitem__(index)
        text = int(self.assigned[index])
        if text < 0:
            raise IndexError(f"Row {index} is an unpaired picture, and no text was assigned to it.")
        item = self._picture(index) | {
            "texts": [self.unpaired_texts[text]],
            "text_indices": [self.first_text[-1] + text],
            "product": self.product_of(index),
        }
        if self.shared:
            item["text_names"] = [self._unpaired_names[text]]
        if self.concepts is not None:
            item["concepts"] = None
        return item


class MeanTeacher(TrainerCallback):
    """
    The moving average of what trains of a model, taken after every step.

    Args:
        model (`nn.Module`):
            The model.
        decay (`float`):
            Share of the average that stays at a step, in [0, 1]; less in the first steps, so that it does not hang on
            the start.
        start (`float`, *optional*, defaults to 1.0):
            Share of the training from which on it is asked, at the beginning of each epoch; 1 for never.

    Raises:
        `ValueError`: on the beginning of a training none of whose epochs begins from `start` on.
    """

    def __init__(self, model: nn.Module, decay: float, start: float = 1.0) -> None:
        self.decay, self.start = decay, start
        self._trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._average = {name: p.detach().clone() for name, p in self._trained.items()}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        steps = math.ceil(len(kwargs["train_dataloader"]) / args.gradient_accumulation_steps)
        last = (state.num_train_epochs - 1) * steps / state.max_steps
        if last < self.start < 1:
            raise ValueError(
                f"Nothing would be learnt from the unpaired pictures and texts: they are looked at when an epoch "
                f"begins, from {self.start:.0%} of the training on (`pseudo_pair_start`), and the last of the "
                f"{state.num_train_epochs} epochs begins at {last:.0%}. Raise `num_train_epochs` (or `max_steps`), or "
                "lower `pseudo_pair_start`."
            )

    @torch.no_grad()
    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        decay = min(self.decay, state.global_step / (state.global_step + 10))
        for name, parameter in self._trained.items():
            self._average[name].lerp_(parameter.detach(), 1 - decay)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """The model is the teacher inside of this."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, parameter in self._trained.items():
            kept = parameter.detach().clone()
            parameter.copy_(self._average[name])
            self._average[name] = kept

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The average, for a checkpoint."""
        return {f"teacher.{name}": tensor.contiguous() for name, tensor in self._average.items()}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Takes up the average of a checkpoint."""
        for name, tensor in self._average.items():
            tensor.copy_(state[f"teacher.{name}"])


class PseudoPairSampler(Sampler[int]):
    """
    Rows of an epoch, as many as there are pictures: the pairs that are known, over and over, and from some point of
    the training on the pseudo-pairs that the teacher is sure of, which is asked when an epoch begins.

    The order is the same in all processes, and a checkpoint keeps it with what was assigned.

    Args:
        pairs ([`PartlyPairedDataset`]):
            The rows; its epoch is the sampler's.
        teach (`Callable`):
            Gives unpaired rows, the texts they are nearest to and how sure that is ([`mutual_nearest`]), now.
        progress (`Callable`):
            Gives the share of the training that is done.
        start (`float`):
            Share of the training from which on pseudo-pairs are used.
        threshold (`float`):
            How sure the teacher has to be.
        share (`float`):
            Largest share of an epoch that is pseudo-pairs.
        seed (`int`, *optional*, defaults to 0):
            Another seed gives other orders.
        batch_size (`int`, *optional*):
            Spreads each product over the batches of so many rows ([`~fusionmatch.training.sampling.spread`]); at
            random without.
    """

    def __init__(
        self,
        pairs: PartlyPairedDataset,
        teach: Callable[[], tuple[torch.Tensor, torch.Tensor, torch.Tensor]],
        progress: Callable[[], float],
        start: float,
        threshold: float,
        share: float,
        seed: int = 0,
        batch_size: int | None = None,
    ) -> None:
        self.pairs, self.teach, self.progress = pairs, teach, progress
        self.start, self.threshold, self.share, self.seed = start, threshold, share, seed
        self.batch_size = batch_size
        self.order: tuple[int, torch.Tensor] | None = None

    def __len__(self) -> int:
        return len(self.pairs)

    def __iter__(self) -> Iterator[int]:
        # What the teacher said at the beginning of an epoch cannot be found again in its middle.
        if self.order is None or self.order[0] != self.pairs.epoch:
            order, assigned = from_main_process(self._new_order)
            self.pairs.assigned.copy_(assigned)
            self.order = self.pairs.epoch, torch.tensor(order)
        return iter(self.order[1].tolist())

    def _new_order(self) -> tuple[list[int], torch.Tensor]:
        generator = torch.Generator().manual_seed((self.seed << 20) + self.pairs.epoch)
        assigned = torch.full_like(self.pairs.assigned, -1)
        if self.progress() >= self.start:
            rows, texts, confidence = self.teach()
            sure = confidence >= self.threshold
            assigned[rows[sure]] = texts[sure]
        pseudo = (assigned >= 0).nonzero().flatten()
        pseudo = pseudo[torch.randperm(len(pseudo), generator=generator)][: int(self.share * len(self))]
        known = torch.tensor(self.pairs.labelled)
        rest = len(self) - len(pseudo)
        # Each known pair as often as any other, and far from itself.
        repeated = [known[torch.randperm(len(known), generator=generator)] for _ in range(-(-rest // len(known)))]
        both = torch.cat([torch.cat(repeated)[:rest], pseudo])
        if self.batch_size is not None:
            self.pairs.assigned.copy_(assigned)  # it says which products these are
            mixed = both[torch.randperm(len(both), generator=generator)].tolist()
            return spread(mixed, self.pairs, self.batch_size, generator), assigned
        # Both are spread over the whole epoch.
        place = torch.cat([(torch.arange(count) + 0.5) / max(1, count) for count in (rest, len(pseudo))])
        return both[place.argsort(stable=True)].tolist(), assigned

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Epoch, order and assigned texts, for a checkpoint; empty before the first epoch."""
        if self.order is None:
            return {}
        return {"epoch": torch.tensor(self.order[0]), "order": self.order[1], "assigned": self.pairs.assigned}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Takes up an order where it was left."""
        if state:
            self.order = int(state["epoch"]), state["order"]
            self.pairs.assigned.copy_(state["assigned"])

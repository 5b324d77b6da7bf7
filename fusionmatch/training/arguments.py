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

"""Arguments of [`FusionMatchTrainer`]."""

import json
from dataclasses import dataclass, field

import torch
from transformers import SchedulerType, TrainingArguments

from ..losses_fusionmatch import CONTRASTIVE_LOSSES
from .sampling import SAMPLERS, SAMPLERS_HELP
from .weighting import SCHEMES


# What can be minimised; [`MatchingObjective`] says what each compares.
COMPONENTS = ("fused", "instance", "consensus", "concept", "matching")


@dataclass
class FusionMatchTrainingArguments(TrainingArguments):
    r"""
    [`~transformers.TrainingArguments`] with the settings of image-text matching.

    Args:
        mini_batch_size (`int`, *optional*):
            Pictures and texts that go through the towers at a time. The contrast is among the whole batch all the
            same; each mini-batch is computed twice, and memory is that of one (GradCache, arXiv 2101.06983).
        texts_per_image (`int`, *optional*, defaults to 5):
            Texts of each picture in a batch, at most; they are all its positives. They rotate with the epoch.
        image_views (`int`, *optional*, defaults to 4):
            Views of each picture that the epochs take turns in: itself, its mirror image, crops. With a frozen vision
            tower the features of all views are cached.
        batch_sampler (`str`, *optional*, defaults to `"batch_sampler"`):
            Which pairs meet in a batch, see [`~fusionmatch.training.sampling.SpreadSampler`]: `batch_sampler` (at
            random), `no_duplicates` (best on a catalogue with variants, and the default of `fusionmatch adapt`) or
            `hard_negatives` (not with unpaired texts). The names are those of Sentence Transformers.
        loss_components (`list[str]`, *optional*, defaults to `["fused"]`):
            Components of the loss: `fused`, `instance`, `consensus`, `concept`, `matching` ([`MatchingObjective`]).
        contrastive_loss (`str`, *optional*, defaults to `"infonce"`):
            `infonce`, `sigmoid`, `triplet`, or `complementary`, meant for catalogues with swapped pairs; on one it
            did not pay (docs/results.md).
        triplet_margin (`float`, *optional*, defaults to 0.2):
            Margin of `triplet`, in cosine.
        triplet_warmup_steps (`int`, *optional*, defaults to 0):
            Steps in which `triplet` takes the mean over negatives in place of the hardest.
        symmetric_concepts (`bool`, *optional*, defaults to `False`):
            Whether the component `concept` looks both ways.
        loss_weighting (`str`, *optional*, defaults to `"unit"`):
            How components are weighted, see [`LossWeighting`].
        loss_weights (`dict[str, float]`, *optional*):
            Weights of `loss_weighting="fixed"`, by component.
        lr_floor (`float`, *optional*, defaults to 0.0):
            Share of the peak learning rate that `cosine` anneals to, in [0, 1).
        lr_cycles (`int`, *optional*, defaults to 1):
            Cycles of `cosine`; with more than one the rate restarts from its peak.
        ranking_top_k (`int`, *optional*, defaults to 20):
            Candidates that a ranking stage, where there is one, looks at when it is measured.
        max_text_length (`int`, *optional*):
            Longest text in tokens; defaults to the tokenizer's limit. Longer texts are cut, and how many is logged.
        tower_learning_rate (`float`, *optional*):
            Learning rate of the towers' weights (or of the LoRA weights in them), defaults to `learning_rate`; to
            [`~fusionmatch.training.adapters.FULL_TOWER_LEARNING_RATE`] in commands that train whole towers.
        pseudo_pair_threshold (`float`, *optional*, defaults to 0.5):
            How sure the teacher has to be that an unpaired picture and an unpaired text belong together, in [0, 1]
            ([`~fusionmatch.training.unpaired.mutual_nearest`]).
        pseudo_pair_share (`float`, *optional*, defaults to 0.5):
            Largest share of an epoch that is pseudo-pairs, in [0, 1].
        pseudo_pair_start (`float`, *optional*, defaults to 0.5):
            Share of the training, in [0, 1], from which on there are pseudo-pairs: in the epochs that begin after it.
            1 for none at all.
        teacher_decay (`float`, *optional*, defaults to 0.99):
            Share of the teacher, a moving average of the weights, that stays at a step, in [0, 1].
        training_guard (`bool`, *optional*, defaults to `True`):
            Whether to stop a training that cannot succeed within its first steps, see [`TrainingGuard`].
        cache_tower_features (`bool`, *optional*, defaults to `True`):
            Whether the features of a tower without trainable weights are computed once and kept on disk.
        feature_cache_dir (`str`, *optional*):
            Where; defaults to `feature_cache` in `output_dir`. The same folder may serve many runs.
        hub_base_model (`str`, *optional*):
            Hub name of the base, for an adapter that is pushed (`push_to_hub`) and whose base is loaded from a folder.

    > Defaults that differ from `TrainingArguments`: `per_device_train_batch_size=128` and `learning_rate=1e-3` (the
    > contrast is among the pairs of a batch, and the heads are small), `weight_decay=0.05`,
    > `lr_scheduler_type="cosine"` with `warmup_steps=0.05` (a share of all steps), `num_train_epochs=20`,
    > `eval_strategy` and `save_strategy` `"epoch"`, `save_total_limit=2`, `load_best_model_at_end=True` by
    > `metric_for_best_model="rsum"`,
    > `dataloader_drop_last=True`, `remove_unused_columns=False`, `report_to="none"`, `logging_steps=10`.

    Raises:
        `ValueError`: a value outside its range.
    """

    per_device_train_batch_size: int = field(default=128, metadata={"help": "Pairs in a batch, for each process."})
    per_device_eval_batch_size: int = field(default=64, metadata={"help": "Pictures embedded at a time."})
    learning_rate: float = field(default=1e-3, metadata={"help": "Peak learning rate of AdamW."})
    weight_decay: float = field(
        default=0.05, metadata={"help": "Weight decay; never on biases, norms, gates, queries or the scale."}
    )
    num_train_epochs: float = field(default=20.0, metadata={"help": "Passes over the training pictures."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Schedule of the learning rate."})
    warmup_steps: float = field(default=0.05, metadata={"help": "Warm-up: steps, or below 1 a share of all steps."})
    logging_steps: float = field(default=10, metadata={"help": "Log every so many steps."})
    eval_strategy: str = field(default="epoch", metadata={"help": "When to measure on the validation split."})
    save_strategy: str = field(default="epoch", metadata={"help": "When to save a checkpoint."})
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints kept, the best one among them."})
    load_best_model_at_end: bool = field(default=True, metadata={"help": "Whether to end with the best checkpoint."})
    metric_for_best_model: str | None = field(default="rsum", metadata={"help": "Retrieval metric that decides."})
    dataloader_drop_last: bool = field(default=True, metadata={"help": "Whether to drop the last, smaller batch."})
    remove_unused_columns: bool | None = field(default=False, metadata={"help": "Not used: the collator chooses."})
    report_to: str | None = field(default="none", metadata={"help": "Experiment trackers, as in transformers."})

    mini_batch_size: int | None = field(
        default=None, metadata={"help": "Pictures and texts in the towers at a time, for batches beyond memory."}
    )
    texts_per_image: int = field(
        default=5, metadata={"help": "Texts of each picture in a batch, at most; all are positives."}
    )
    image_views: int = field(
        default=4, metadata={"help": "Views of each picture in turn: itself, its mirror image, crops."}
    )
    batch_sampler: str = field(default="batch_sampler", metadata={"help": SAMPLERS_HELP})
    loss_components: list[str] = field(
        default_factory=lambda: ["fused"], metadata={"help": "Of fused, instance, consensus, concept, matching."}
    )
    contrastive_loss: str = field(
        default="infonce", metadata={"help": "infonce, sigmoid, triplet, or complementary for noisy pairs."}
    )
    triplet_margin: float = field(default=0.2, metadata={"help": "Margin of triplet, in cosine."})
    triplet_warmup_steps: int = field(
        default=0, metadata={"help": "Steps of triplet with the mean over negatives in place of the hardest."}
    )
    symmetric_concepts: bool = field(default=False, metadata={"help": "Whether concept looks both ways."})
    loss_weighting: str = field(default="unit", metadata={"help": f"Weights of the components: {', '.join(SCHEMES)}."})
    loss_weights: dict | str | None = field(
        default=None, metadata={"help": 'Weights of fixed, as JSON: \'{"fused": 3, "instance": 5}\'.'}
    )
    lr_floor: float = field(default=0.0, metadata={"help": "Share of the peak rate that cosine anneals to."})
    lr_cycles: int = field(default=1, metadata={"help": "Cycles of cosine, each from the peak again."})
    ranking_top_k: int = field(
        default=20, metadata={"help": "Candidates that a ranking stage looks at when it is measured."}
    )
    max_text_length: int | None = field(
        default=None, metadata={"help": "Longest text in tokens; defaults to the tokenizer's limit."}
    )
    tower_learning_rate: float | None = field(
        default=None,
        metadata={
            "help": "Learning rate in the towers; defaults to learning_rate for LoRA, to a lower one for whole towers."
        },
    )
    pseudo_pair_threshold: float = field(
        default=0.5, metadata={"help": "How sure the teacher has to be of a pair, in [0, 1]."}
    )
    pseudo_pair_share: float = field(
        default=0.5, metadata={"help": "Largest share of an epoch that is pseudo-pairs, in [0, 1]."}
    )
    pseudo_pair_start: float = field(
        default=0.5,
        metadata={"help": "Share of the training after which an epoch that begins has pseudo-pairs; 1 for none."},
    )
    teacher_decay: float = field(
        default=0.99, metadata={"help": "Share of the teacher (a moving average) that stays at a step, in [0, 1]."}
    )
    training_guard: bool = field(default=True, metadata={"help": "Stop a training that cannot succeed, and say why."})
    cache_tower_features: bool = field(
        default=True, metadata={"help": "Compute features of frozen towers once and keep them on disk."}
    )
    feature_cache_dir: str | None = field(
        default=None, metadata={"help": "Folder of those features; defaults to OUTPUT_DIR/feature_cache."}
    )
    hub_base_model: str | None = field(
        default=None, metadata={"help": "Hub name of the base, for a pushed adapter whose base is a folder here."}
    )

    def __post_init__(self) -> None:
        for name in ("texts_per_image", "image_views", "lr_cycles", "ranking_top_k", "mini_batch_size"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        if isinstance(self.loss_weights, str):
            self.loss_weights = json.loads(self.loss_weights)
        choices = {"contrastive_loss": CONTRASTIVE_LOSSES, "loss_weighting": SCHEMES, "batch_sampler": SAMPLERS}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"`{name}` must be one of {', '.join(allowed)}, got {getattr(self, name)!r}.")
        unknown = [name for name in self.loss_components if name not in COMPONENTS]
        if unknown or not self.loss_components:
            raise ValueError(f"`loss_components` must be some of {', '.join(COMPONENTS)}, got {self.loss_components}.")
        if self.max_text_length is not None and self.max_text_length < 2:
            raise ValueError(f"`max_text_length` must be at least 2 tokens, got {self.max_text_length}.")
        for name in ("pseudo_pair_threshold", "pseudo_pair_share", "pseudo_pair_start", "teacher_decay"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"`{name}` must be a share in [0, 1], got {getattr(self, name)}.")
        if not 0 <= self.lr_floor < 1:
            raise ValueError(f"`lr_floor` must be a share of the peak rate in [0, 1), got {self.lr_floor}.")
        if self.loss_weights is not None and self.loss_weighting != "fixed":
            raise ValueError(f"`loss_weights` are for `loss_weighting` fixed, which is {self.loss_weighting!r}.")
        if (self.lr_floor or self.lr_cycles > 1) and self.lr_scheduler_type != SchedulerType.COSINE:
            raise ValueError(
                "`lr_floor` and `lr_cycles` are for `lr_scheduler_type` cosine, which is "
                f"{SchedulerType(self.lr_scheduler_type).value!r}."
            )
        # Without evaluation there is no best model to end with; asking for both is TrainingArguments' own error.
        if self.eval_strategy == "no":
            self.load_best_model_at_end = False
        if self.greater_is_better is None and "rank" in (self.metric_for_best_model or ""):
            self.greater_is_better = False
        # Pinned memory is for copies to an accelerator; without one torch warns at every epoch.
        if not torch.accelerator.is_available():
            self.dataloader_pin_memory = False
        super().__post_init__()

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

"""Trainer for image-text matching."""

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import torch
from torch import nn
from transformers import ProgressCallback, TrainerCallback
from transformers.trainer_utils import EvalLoopOutput, SchedulerType
from transformers.utils import logging

from ..evaluation.inputs import count_truncated, prepare_image, text_limit
from ..evaluation.retrieval import evaluate_retrieval, unique_texts
from ..loading import changed_settings, fingerprint
from ..modeling_fusionmatch import FusionMatchModel
from .adapters import model_parts, peft_base, set_tower_rate, trains, unwrap_model, with_adapter
from .annealing import annealing_factor
from .arguments import FusionMatchTrainingArguments
from .callbacks import Clock, DataWait, EpochCallback, LossLog, RetrievalProgressCallback
from .data import FusionMatchCollator, PairDataset, check_columns
from .distributed import gather_with_grad, mean_value
from .features import TowerFeatureCache
from .guards import TrainingGuard, alignment, uniformity
from .objective import BatchPairs, MatchingObjective
from .pushing import check_base_on_hub
from .resuming import ResumingTrainer
from .sampling import embed_rows, make_sampler
from .unpaired import MeanTeacher, PartlyPairedDataset, PseudoPairSampler, mutual_nearest


logger = logging.get_logger(__name__)

# Learning rate of what `loss_weighting` learns.
WEIGHTING_RATE = 1e-2


class FusionMatchTrainer(ResumingTrainer):
    r"""
    [`~transformers.Trainer`] for [`FusionMatchModel`]: multi-positive InfoNCE over the batch gathered from all
    processes, features of frozen towers computed once, retrieval metrics as evaluation.

    Args:
        model ([`FusionMatchModel`] or `PeftModel`):
            The model; what is to be trained has `requires_grad`.
        args ([`FusionMatchTrainingArguments`]):
            Arguments.
        train_dataset (`datasets.Dataset`, *optional*):
            Training split in the schema of [`fusionmatch.catalogue`]: `image`, `texts`, `product`.
        eval_dataset (`datasets.Dataset` or `dict`, *optional*):
            Validation split, in the same schema.
        processing_class ([`FusionMatchProcessor`]):
            Prepares pictures and texts; saved with every checkpoint.
        callbacks (`list[TrainerCallback]`, *optional*):
            Further callbacks.
        peft_config (`peft.PeftConfig`, *optional*):
            Wraps the model in an adapter first; [`lora_config`] makes one that fits.
        unpaired_texts (`datasets.Dataset`, *optional*):
            Texts (column `text`) of which nobody has said yet which picture they belong to; rows of `train_dataset`
            with empty `texts` are the pictures ([`~fusionmatch.training.unpaired`]).

    Raises:
        `ValueError`: a dataset has another schema or fewer than two products, nothing is trainable, or the model is
            of another class.
        `FloatingPointError`: the loss is not finite any more.
        [`TrainingStoppedError`]: the training cannot succeed; the message names the cause.

    Example:

    ```python
    >>> from fusionmatch import FusionMatchTrainer, FusionMatchTrainingArguments, load_catalogue
    >>> from fusionmatch.training import lora_config

    >>> splits = load_catalogue("products.csv")
    >>> trainer = FusionMatchTrainer(
    ...     model,
    ...     FusionMatchTrainingArguments("adapter"),
    ...     train_dataset=splits["train"],
    ...     eval_dataset=splits["validation"],
    ...     processing_class=processor,
    ...     peft_config=lora_config(model),
    ... )
    >>> trainer.train()
    ```"""

    # Every micro-batch is a contrast of its own, so the Trainer has to average over accumulation steps.
    loss_is_scaled_for_ga = False

    def __init__(
        self,
        model: nn.Module,
        args: FusionMatchTrainingArguments,
        train_dataset: datasets.Dataset | None = None,
        eval_dataset: datasets.Dataset | dict[str, datasets.Dataset] | None = None,
        processing_class: Any = None,
        callbacks: list[TrainerCallback] | None = None,
        peft_config: Any = None,
        unpaired_texts: datasets.Dataset | None = None,
        **kwargs: Any,
    ) -> None:
        if processing_class is None:
            raise ValueError("Pass the model's processor as `processing_class`; pictures and texts go through it.")
        if peft_config is not None:
            model = with_adapter(model, peft_config, args.seed)
        if not trains(model):
            raise ValueError("No parameter of the model has `requires_grad`; there is nothing to train.")
        for dataset in eval_dataset.values() if isinstance(eval_dataset, dict) else (eval_dataset,):
            if dataset is not None:
                check_columns(dataset)
        if eval_dataset is None and args.eval_strategy != "no":
            raise ValueError('Pass an `eval_dataset`, or set `eval_strategy="no"`.')

        core = unwrap_model(model)
        if not isinstance(core, FusionMatchModel):
            raise ValueError(
                f"{type(core).__module__}.{type(core).__name__} is not the FusionMatchModel of this package. A model "
                "whose code came with it (`trust_remote_code`) is trained as ours: import fusionmatch, load it again."
            )
        self.objective = MatchingObjective.from_arguments(args, model)
        if "fused" not in args.loss_components:
            # The gates learn from nothing else. Left trainable, they would wait for a gradient under DDP.
            for name, parameter in core.named_parameters():
                if name.endswith("residual.gate"):
                    parameter.requires_grad_(False)
        # Taken before training: the fingerprint of what an adapter is made on.
        adapted = peft_base(model) is not model
        self._base_fingerprint = fingerprint(model) if adapted else None
        self._base_settings = changed_settings(core.config) if adapted else {}
        if adapted and args.push_to_hub:
            # Before the training rather than at its end, and never beside it: loading is not made for two threads.
            self.hub_base_revision = check_base_on_hub(args, core, self._base_fingerprint, self._base_settings)
        # Known before the mark is taken off.
        self._fresh_ranker = "ranker" in core.config.untrained_modules and "matching" in args.loss_components
        if not adapted:
            trained = {name for name, module in model_parts(model).items() if trains(module)}
            core.config.untrained_modules = [n for n in core.config.untrained_modules if n not in trained]
        caching = args.cache_tower_features
        self._cache_dir = Path(args.feature_cache_dir or Path(args.output_dir) / "feature_cache")
        self._cached_vision = caching and not trains(core.vision_model)
        self._cached_text = caching and not trains(core.text_model)
        self._features: dict[tuple[int, bool], tuple[datasets.Dataset, dict[str, TowerFeatureCache]]] = {}
        # Needed before Trainer's own constructor has run, which has to be given the collator with the features.
        self.args, self._core, self._processor = args, core.to(args.device), processing_class

        if args.max_text_length is not None:
            # Saved with the processor: whoever loads the result reads texts to the same length.
            processing_class.tokenizer.model_max_length = args.max_text_length
        words = core.config.concept_words or ()
        collator = FusionMatchCollator(processing_class, core.config.text_config, concept_words=words)
        pairs, self._shared = None, None
        if train_dataset is not None:
            settings = {
                "texts_per_image": args.texts_per_image,
                "image_views": args.image_views,
                "prepare": None if self._cached_vision else partial(prepare_image, processing_class),
            }
            if unpaired_texts is None:
                pairs = PairDataset(train_dataset, **settings)
            else:
                pairs = PartlyPairedDataset(train_dataset, unpaired_texts, **settings)
            self._shared = pairs.shared
            self._check_batch_size(args, len(pairs))
            if "concept" in args.loss_components and pairs.concepts is None:
                logger.warning(
                    "No concepts are known of the training rows: the component `concept` makes pictures and texts "
                    "agree on concepts, but not on those that a person would name. `--concepts_file concepts.json`, "
                    "or `ConceptBank.label`, ties them to their words."
                )
            named = {word for row in pairs.concepts or () for word in row or ()}
            if named and words and not named & set(words):
                raise ValueError(
                    f"The rows name {len(named)} concepts ({', '.join(sorted(named)[:3])}, ...), and none of them is "
                    f"one of the base's ({', '.join(words[:3])}, ...). Name the concepts file that the base was given."
                )
            texts = pairs.all_texts
            self._report_truncated(texts)
            features = self.cached_features(train_dataset, texts, args.image_views)
            collator.vision_features = features.get("vision_features")
            collator.text_features = features.get("text_features")
        self._train_rows, self._sampler = train_dataset, None
        super().__init__(
            model=model,
            args=args,
            train_dataset=pairs,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            data_collator=collator,
            callbacks=callbacks,
            **kwargs,
        )
        self._advise_bf16()
        self._guard, self._chance, self._last_batch = TrainingGuard(), None, None
        self._first_norm = None
        self._data_wait = DataWait()
        self.add_callback(self._data_wait)
        self._loss_log = LossLog(Path(args.output_dir) / LossLog.FILE if args.should_save else None)
        self.add_callback(self._loss_log)
        batch = args.train_batch_size * args.world_size
        self._teacher: MeanTeacher | None = None
        if isinstance(pairs, PartlyPairedDataset):
            if args.batch_sampler == "hard_negatives":
                raise ValueError(
                    "`batch_sampler` cannot be hard_negatives with unpaired texts, whose pairs another sampler finds; "
                    "leave it away."
                )
            self._teacher = MeanTeacher(self.model, args.teacher_decay, args.pseudo_pair_start)
            self.add_callback(self._teacher)
            self._sampler = PseudoPairSampler(
                pairs,
                self._teach,
                lambda: self.state.global_step / max(1, self.state.max_steps),
                args.pseudo_pair_start,
                args.pseudo_pair_threshold,
                args.pseudo_pair_share,
                args.seed,
                batch if args.batch_sampler == "no_duplicates" else None,
            )
        elif pairs is not None:
            self._sampler = make_sampler(args.batch_sampler, pairs, batch, args.seed, self._embed_rows)
        # What a checkpoint holds besides the state that Trainer knows of, by the name of its file.
        self.clock = Clock()
        self.add_callback(self.clock)
        stateful = {
            "clock.safetensors": self.clock,
            "loss_weighting.safetensors": self.objective.weighting,
            "batch_sampler.safetensors": self._sampler,  # the order of the rows, where a sampler of ours chose it
            "teacher.safetensors": self._teacher,
        }
        self._stateful = {name: part for name, part in stateful.items() if part is not None}
        if pairs is not None:
            self.add_callback(EpochCallback(pairs))
        if not args.disable_tqdm:
            self.remove_callback(ProgressCallback)
            self.add_callback(RetrievalProgressCallback)

    @staticmethod
    def _check_batch_size(args: FusionMatchTrainingArguments, rows: int) -> None:
        # drop_last with a batch larger than the data would train on nothing, silently.
        batch = args.per_device_train_batch_size * args.world_size
        if args.dataloader_drop_last and rows < batch:
            args.per_device_train_batch_size = max(2, rows // args.world_size)
            logger.warning(
                f"The batch of {batch} pairs is larger than the training split ({rows} pictures); using "
                f"{args.per_device_train_batch_size} for each process."
            )

    def _advise_bf16(self) -> None:
        # Features of frozen towers are cached; what is left to compute is too little to gain from.
        cached = self.train_dataset is None or (self._cached_vision and self._cached_text)
        full = not self.args.bf16 and self._core.dtype == torch.float32
        capabilities = torch.cpu.get_capabilities()
        able = any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16"))
        if self.args.device.type == "cpu" and full and able and not cached and self.args.should_log:
            logger.warning(
                "This processor has instructions for bfloat16: `--use_cpu True --bf16 True` trains the towers in less "
                "time."
            )

    def _report_truncated(self, texts: Sequence[str]) -> None:
        truncated = count_truncated(self._processor, texts, self._core.config.text_config)
        if truncated:
            limit = text_limit(self._processor, self._core.config.text_config)
            logger.warning(
                f"{truncated} of {len(texts)} training texts are longer than {limit} tokens; what goes beyond is not "
                "read. `--max_text_length` raises the limit up to what the text tower allows."
            )

    def cached_features(
        self, dataset: datasets.Dataset, texts: Sequence[str] | None = None, views: int = 1
    ) -> dict[str, TowerFeatureCache]:
        """
        Features of the towers that do not train, for the pictures of a dataset (some views of each) and for its
        [`unique_texts`] (or the given ones); computed by the main process when they are first asked for, then read
        from disk.
        """
        key = (id(dataset), texts is None)
        if key not in self._features or self._features[key][0] is not dataset:
            core = self._core
            texts = unique_texts(dataset)[0] if texts is None else texts
            features = {}
            with self.args.main_process_first(local=False, desc="tower features"):
                if self._cached_vision:
                    features["vision_features"] = TowerFeatureCache.for_images(
                        core,
                        self._processor,
                        dataset,
                        self._cache_dir,
                        disable_tqdm=self.args.disable_tqdm,
                        views=views,
                    )
                if self._cached_text:
                    features["text_features"] = TowerFeatureCache.for_texts(
                        core, self._processor, texts, self._cache_dir, disable_tqdm=self.args.disable_tqdm
                    )
            # The dataset is kept beside its features: the id of one that is gone may be given to another.
            self._features[key] = (dataset, features)
        return self._features[key][1]

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        inputs = dict(inputs)
        names = ("text_products", "image_products", "text_names", "image_names")
        pairs = BatchPairs.gather(*(inputs.pop(name, None) for name in names), self._shared)
        labels = {name: inputs.pop(name, None) for name in ("text_labels", "image_labels")}
        if model.training:
            inputs["mini_batch_size"] = self.args.mini_batch_size
        outputs = model(**inputs)
        unwrapped = self.accelerator.unwrap_model(self.model)
        if model.training and self._fresh_ranker and self.state.global_step == 0:
            start = peft_base(unwrapped).start_from_similarity
            start(outputs.logits_per_text, pairs.own_positives, mean_value)
        self._fresh_ranker = self._fresh_ranker and not model.training
        losses = self.objective.losses(unwrapped, outputs, pairs, self.state.global_step, **labels)
        self.objective.weighting.train(model.training)
        try:
            loss, weights = self.objective.weighting(losses)
        except FloatingPointError as error:
            raise FloatingPointError(
                f"{error} That was at step {self.state.global_step + 1}. {self._after_nan()}"
            ) from error
        if model.training:
            self._loss_log.add(self.state.global_step, losses, weights)
            self._watch(unwrapped, outputs, losses, pairs)
        return (loss, outputs) if return_outputs else loss

    def _embed_rows(self) -> tuple[torch.Tensor, torch.Tensor]:
        model = self.accelerator.unwrap_model(self.model)
        size = self.args.per_device_eval_batch_size
        rows = self._train_rows, self.train_dataset
        with self._data_wait.apart():
            return embed_rows(model, self.processing_class, *rows, self.data_collator, size)

    def _teach(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        with self._teacher.in_place():
            scale = self._core.similarity.logit_scale.float().exp().item()
            places, texts, confidence = mutual_nearest(*self._embed_rows(), scale)
        return torch.tensor(self.train_dataset.unlabelled)[places], texts, confidence

    def _get_train_sampler(self, train_dataset: Any = None) -> torch.utils.data.Sampler | None:
        if self._sampler is None:
            return super()._get_train_sampler(train_dataset)
        return self._sampler

    @torch.no_grad()
    def _watch(
        self,
        model: nn.Module,
        outputs: Any,
        losses: dict[str, torch.Tensor],
        pairs: BatchPairs,
    ) -> None:
        """Chance level for the log; and the guard, which sees the same on all processes, so that all of them stop."""
        name, texts, images = self.objective.main_component, None, None
        if name not in ("concept", "matching"):
            texts, images = gather_with_grad(outputs.text_embeds), gather_with_grad(outputs.image_embeds)
            self._last_batch = texts, images, pairs.positives
        self._chance = self.objective.chance_level(model, pairs, self.state.global_step)
        # The mean of hinges in the warm-up lies below the largest ones after it: no start to compare with.
        warms_up = self.args.contrastive_loss == "triplet" and self.state.global_step < self.args.triplet_warmup_steps
        # Of the batches that a step accumulates the last: the guard counts optimizer steps.
        if not self.args.training_guard or warms_up or not self.accelerator.sync_gradients:
            return
        growth = 1.0
        if self._guard.early:
            trained = [p.detach() for p in model.parameters() if p.requires_grad and p.ndim > 1]
            norm = torch.stack(torch._foreach_norm(trained)).norm().item()
            self._first_norm = self._first_norm or norm
            growth = norm / max(self._first_norm, 1e-12)
        similarity = self._core.similarity
        self._guard.check(
            loss=losses[name].item(),
            chance=self._chance,
            scale=similarity.logit_scale.float().exp().item(),
            max_scale=math.exp(similarity.max_log_scale),
            texts=texts,
            images=images,
            learning_rate=self._get_learning_rate(),
            growth=growth,
            step=self.state.global_step + 1,
        )

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        if self.state.global_step >= self.state.max_steps:
            # Gone on with after its last step, in the middle of an epoch: Trainer would do one step more.
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> Any:
        with self._data_wait.waiting():
            return super().get_batch_samples(epoch_iterator, num_batches, device)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs |= self._loss_log.means()
            if self._teacher is not None:
                pairs = self.train_dataset
                logs["pseudo_pairs"] = pairs.found
                logs |= {} if pairs.precision is None else {"pseudo_pair_precision": pairs.precision}
            if self._chance is not None:
                logs[f"chance_{self.objective.main_component}"] = self._chance
            if self._last_batch is not None:
                texts, images, positives = self._last_batch
                logs |= {
                    "alignment": alignment(texts, images, positives),
                    "uniformity_texts": uniformity(texts),
                    "uniformity_images": uniformity(images),
                }
        super().log(logs, start_time)

    def evaluation_loop(
        self,
        dataloader: torch.utils.data.DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        dataset = dataloader.dataset
        metrics = evaluate_retrieval(
            self.accelerator.unwrap_model(self.model),
            self.processing_class,
            dataset,
            batch_size=self.args.per_device_eval_batch_size,
            disable_tqdm=True,
            ranking_top_k=self.args.ranking_top_k,
            **self.cached_features(dataset),
        )
        # Sizes and chance levels stay what they are from epoch to epoch; the log is for what moves.
        moving = (name for name in metrics if "recall" in name or "rank" in name or name.endswith(("mrr", "rsum")))
        metrics = {f"{metric_key_prefix}_{name}": metrics[name] for name in moving if "chance" not in name}
        return EvalLoopOutput(predictions=None, label_ids=None, metrics=metrics, num_samples=len(dataset))

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Matrices decay; biases, norms, gates, queries, level embeddings and the similarity scale do not."""
        return [
            name
            for name, parameter in model.named_parameters()
            if parameter.ndim >= 2 and not name.endswith("level_embeddings")
        ]

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        created = self.optimizer is None
        optimizer = super().create_optimizer(model)
        rate = self.args.tower_learning_rate
        if created and rate is not None:
            names = {id(p): n for n, p in (self.model if model is None else model).named_parameters()}
            set_tower_rate(optimizer, names, rate)
        learned = [p for p in self.objective.parameters() if p.requires_grad]
        if created and learned:
            # At the rate of a head they would hardly leave 0 within some hundred steps.
            optimizer.add_param_group({"params": learned, "weight_decay": 0.0, "lr": WEIGHTING_RATE})
            # Trainer clears the gradients of the model; these are not part of it.
            optimizer.register_step_post_hook(lambda *_: self.objective.zero_grad())
        return optimizer

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """`cosine` is our own [`annealing_factor`], with floor and restarts; the others are transformers'."""
        if self.lr_scheduler is None and self.args.lr_scheduler_type == SchedulerType.COSINE:
            cycles = self.args.lr_cycles
            factor = partial(
                annealing_factor,
                total_steps=num_training_steps,
                # A share of very few steps is rounded up; each cycle has a step at least.
                warmup_steps=max(0, min(self.args.get_warmup_steps(num_training_steps), num_training_steps - cycles)),
                floor=self.args.lr_floor,
                cycles=cycles,
            )
            factor(0)  # settings that do not fit are an error now, not after the first step
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer or self.optimizer, factor)
            self._created_lr_scheduler = True
        return super().create_scheduler(num_training_steps, optimizer)

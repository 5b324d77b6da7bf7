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
"""The whole way from a base to a measured adapter or checkpoint."""

import hashlib
import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import logging

from ..evaluation.concepts import ConceptCollector, concept_metrics
from ..evaluation.queries import QueryResults
from ..evaluation.retrieval import CatalogueEmbeddings, embed_catalogue
from ..modeling_fusionmatch import FusionMatchModel
from ..modeling_fusionmatch_pretrained import BASE_SETTINGS, fingerprint
from ..repository import FINGERPRINT_FILE
from .adapters import describe_trainable, unwrap_model
from .arguments import FusionMatchTrainingArguments
from .callbacks import LossLog
from .checkpoints import (
    SPARE_BYTES,
    STATE_FILE,
    check_room,
    last_whole_checkpoint,
    set_aside_later,
    what_is_broken,
    words_for_a_full_disk,
)
from .guards import TrainingStoppedError
from .trainer import FusionMatchTrainer
from .unpaired import PartlyPairedDataset


logger = logging.get_logger(__name__)


@dataclass
class FitResult:
    """
    What [`fit`] measured.

    Args:
        before, after (`dict[str, float]`):
            Retrieval metrics on the test split, of the base and of the trained model.
        before_embeddings, after_embeddings ([`~fusionmatch.evaluation.retrieval.CatalogueEmbeddings`]):
            Embeddings of the test split.
        before_queries, after_queries ([`~fusionmatch.evaluation.queries.QueryResults`]):
            What was found for each of its queries.
        trainable (`list[tuple[str, int, int]]`):
            Part of the model, trainable parameters, all parameters.
        seconds (`float`):
            Duration of the training, tower features and evaluation on the validation split included.
        trainer ([`FusionMatchTrainer`]):
            The trainer, holding the trained model.
    """

    before: dict[str, float]
    after: dict[str, float]
    before_embeddings: CatalogueEmbeddings
    after_embeddings: CatalogueEmbeddings
    before_queries: QueryResults
    after_queries: QueryResults
    trainable: list[tuple[str, int, int]]
    seconds: float
    trainer: FusionMatchTrainer


RUN_FILE = "run.json"
METRICS_FILE = "metrics.json"
# What was found for each query of the test split, of the base and of the trained model.
QUERIES_FILE, QUERIES_BEFORE_FILE = "queries.parquet", "queries_before.parquet"

# In the run file, beside what must stay as it is: what may change when a run is gone on with, and why it was stopped.
_SETTINGS = ("texts_per_image", "image_views", "max_text_length", "batch_sampler", "learning_rate")
_MAY_CHANGE, _STOPPED = ("seed", "batch_size", "base_settings", *_SETTINGS), "stopped"
# PEFT fills these in itself, and the base has its fingerprint.
_OF_PEFT = ("auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "revision", "task_type")


def run_key(
    model: FusionMatchModel,
    splits: datasets.DatasetDict,
    args: FusionMatchTrainingArguments,
    peft_config: Any,
    unpaired_texts: datasets.Dataset | None,
) -> dict[str, Any]:
    """
    What a run has to have in common with one that it goes on from: without it neither the weights of a checkpoint nor
    the state of its optimizer would fit. What may change (`_MAY_CHANGE`) is there as well.
    """
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(splits):
        columns = (splits[name]["product"], splits[name]["texts"])
        digest.update(json.dumps([name, *(list(column) for column in columns)], ensure_ascii=False).encode())
    if unpaired_texts is not None:
        digest.update(json.dumps(list(unpaired_texts["text"]), ensure_ascii=False).encode())
    if peft_config is None:
        parts = {f"trained weights in {name}": count for name, count, _ in describe_trainable(model)}
    else:
        parts = {f"adapter's {name}": value for name, value in peft_config.to_dict().items() if name not in _OF_PEFT}
    key = {
        "trains": "weights" if peft_config is None else "an adapter",
        "base": fingerprint(model),
        "catalogue": digest.hexdigest(),
        **parts,
        "loss_components": args.loss_components,
        "contrastive_loss": args.contrastive_loss,
        "loss_weighting": args.loss_weighting,
        "optim": args.optim,
        "weight_decay": args.weight_decay,
        "own rate of the towers": args.tower_learning_rate is not None,
        "seed": args.seed,
        "batch_size": args.train_batch_size * args.world_size * args.gradient_accumulation_steps,
        "base_settings": {name: getattr(unwrap_model(model).config, name) for name in BASE_SETTINGS},
        **{name: getattr(args, name) for name in _SETTINGS},
    }
    # As it will be read again; PEFT keeps sets, in no order.
    return json.loads(json.dumps(key, default=lambda value: sorted(value) if isinstance(value, set) else str(value)))


def read_json(path: Path) -> dict[str, Any]:
    """What a JSON file holds; nothing where there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes a JSON file; a process that is killed here leaves the file as it was."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    partial.replace(path)


def check_run(folder: Path, key: dict[str, Any], named: bool = False) -> dict[str, Any]:
    """
    What the run in a folder began with. Raises where it is one of another base, catalogue or kind; and where a guard
    stopped it, unless a checkpoint was `named`: the last one is of weights that were ruined already.
    """
    found = read_json(folder / RUN_FILE)
    if _STOPPED in found and not named:
        raise ValueError(
            f"The run in {folder} was stopped, and its last checkpoint is of that training: {found[_STOPPED]} Name "
            "another `--output_dir` to begin anew, or remove that folder; or name an earlier checkpoint of which you "
            "know that it is sound (`--resume_from_checkpoint`)."
        )
    begun = key | {name: found[name] for name in key if name in found}
    for name, value in key.items():
        if begun[name] != value and name in _MAY_CHANGE:
            logger.warning(f"The run in {folder} began with `{name}` {begun[name]}, now it is {value}.")
        elif begun[name] != value:
            raise ValueError(
                f"The run in {folder} is another one: its {name} is {begun[name]}, now it is {value}. Name "
                "another `--output_dir`, or remove that folder."
            )
    return begun


def _check_base(checkpoint: str, key: dict[str, Any]) -> None:
    """An adapter's checkpoint says itself which base it is of; the file of its run may not lie beside it."""
    base = read_json(Path(checkpoint) / FINGERPRINT_FILE).get("fingerprint", key["base"])
    if base != key["base"]:
        raise ValueError(
            f"{checkpoint} is of an adapter of another base: its fingerprint is {base}, that of this one is "
            f"{key['base']}. Go on with the base that it was made on."
        )


def check_output_dir(output_dir: str | Path) -> str | None:
    """
    The last whole checkpoint in an output folder, to go on from, or `None` for a new or empty folder.

    Raises:
        `ValueError`: the folder holds something else, which a run would overwrite.
        `OSError`: the folder cannot be written to.
    """
    folder = Path(output_dir)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"`output_dir` {folder} is a file. Name a folder.")
    _check_writable(folder)
    if not folder.is_dir() or not any(folder.iterdir()):
        return None
    checkpoint = last_whole_checkpoint(folder)
    # Left behind by a run that stopped before its first checkpoint; the last two by trackers, with a dot what was
    # being written.
    leftovers = (
        "feature_cache",
        "quarantine.jsonl",
        "findings.jsonl",
        LossLog.FILE,
        RUN_FILE,
        "runs",
        "emissions.csv",
    )
    others = [
        path.name
        for path in folder.iterdir()
        if path.name not in leftovers
        and path.suffix != ".partial"
        and not path.name.startswith((PREFIX_CHECKPOINT_DIR, "."))
    ]
    if checkpoint is None and others:
        raise ValueError(
            f"The folder {folder} is not empty ({', '.join(sorted(others)[:3])}, ...) and holds no checkpoint to go "
            "on from. Name another `--output_dir`, or empty this one."
        )
    return checkpoint


def _check_writable(folder: Path) -> None:
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise OSError(
            f"`output_dir` {folder} cannot be written to ({error.strerror}). Name another folder, or get the right to "
            f"write in {there}."
        ) from error


def _check_room(trainer: FusionMatchTrainer) -> None:
    """Weights and the two moments of Adam for each checkpoint that is kept, and for the one that is being written."""
    args = trainer.args
    if not args.should_save:
        return
    trained, total = (
        sum(p.numel() * p.element_size() for p in trainer.model.parameters() if p.requires_grad or every)
        for every in (False, True)
    )
    saved = trained if hasattr(trainer.model, "peft_config") else total
    kept = 0 if args.save_strategy == "no" else (args.save_total_limit or 1) + 1
    moments = 0 if args.save_only_model else 2 * trained
    # Those of a run that is gone on with lie there already, and make room for others.
    there = sum(
        path.stat().st_size for path in Path(args.output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*/*") if path.is_file()
    )
    needed = saved + max(0, kept * (saved + moments) - there) + SPARE_BYTES
    check_room(args.output_dir, needed, "The checkpoints of this training")


def fit(
    model: FusionMatchModel,
    processor: Any,
    splits: datasets.DatasetDict,
    args: FusionMatchTrainingArguments,
    peft_config: Any = None,
    callbacks: list[TrainerCallback] | None = None,
    unpaired_texts: datasets.Dataset | None = None,
) -> FitResult:
    r"""
    Measures a base on the test split, trains on the training split (choosing the best epoch on the validation split),
    measures again, and saves the model or adapter with its processor, `metrics.json` and the results of each query
    ([`~fusionmatch.evaluation.queries.QueryResults`]) into `args.output_dir`. With `args.push_to_hub` checkpoints are
    pushed as `args.hub_strategy` says; the end is left to `result.trainer.push_saved()`, after a card is written.

    Args:
        model ([`FusionMatchModel`]):
            The base.
        processor ([`FusionMatchProcessor`]):
            Its processor.
        splits (`datasets.DatasetDict`):
            Splits `train`, `validation` and `test` in the schema of [`fusionmatch.catalogue`].
        args ([`FusionMatchTrainingArguments`]):
            Arguments; training goes on from `args.resume_from_checkpoint` or the last checkpoint in `output_dir`.
        peft_config (`peft.PeftConfig`, *optional*):
            Trains an adapter in place of the model's own weights.
        callbacks (`list[TrainerCallback]`, *optional*):
            Further callbacks for the trainer.
        unpaired_texts (`datasets.Dataset`, *optional*):
            Texts that nobody has matched yet; rows of `train` with empty `texts` are the pictures
            ([`~fusionmatch.training.unpaired`]).

    Returns:
        [`FitResult`]

    Raises:
        `ValueError`: a split is missing; the output folder holds something that is not a run, or one of another base,
            catalogue or loss, one that a guard stopped, or one that had ended; a named checkpoint is not whole.
        `OSError`: the output folder cannot be written to, or its disk has too little room.
        [`TrainingStoppedError`], `FloatingPointError`: the training cannot succeed; the message names the cause.
    """
    missing = {"train", "validation", "test"} - set(splits)
    if missing:
        raise ValueError(
            f"The splits {sorted(missing)} are missing; there are {sorted(splits)}. Training needs `train`, the "
            "choice of the best epoch `validation`, and the report `test` (`--validation_size` and `--test_size`, or "
            "`--validation_file` and `--test_file`)."
        )
    checkpoint = args.resume_from_checkpoint or check_output_dir(args.output_dir)
    named = bool(args.resume_from_checkpoint)
    if str(checkpoint).lower() == "true":
        checkpoint, named = last_whole_checkpoint(args.output_dir), False
    key = run_key(model, splits, args, peft_config, unpaired_texts)
    folder = Path(args.output_dir)
    if checkpoint:
        broken = what_is_broken(checkpoint) if named else None
        if broken is not None:
            raise ValueError(f"{checkpoint} is no whole checkpoint to go on from: {broken}. Name another one.")
        # The checkpoint says which training it is of, wherever this one is written to.
        key = check_run(Path(checkpoint).parent, key, named)
        _check_base(checkpoint, key)
        logger.warning(f"Going on from {checkpoint}.")
    if args.should_save:
        folder.mkdir(parents=True, exist_ok=True)
        if named and Path(checkpoint).resolve().parent == folder.resolve():
            set_aside_later(checkpoint)
        write_json(folder / RUN_FILE, key)

    # Read now: further checkpoints may push this one out (`save_total_limit`).
    steps_before = _steps(checkpoint) if checkpoint else 0
    start = time.perf_counter()
    trainer = FusionMatchTrainer(
        model,
        args,
        train_dataset=splits["train"],
        eval_dataset=splits["validation"],
        processing_class=processor,
        callbacks=callbacks,
        peft_config=peft_config,
        unpaired_texts=unpaired_texts,
    )
    _check_room(trainer)
    # The features of the towers were computed; to measure the base is no part of the training.
    trainer.clock.before = time.perf_counter() - start
    # A fresh adapter changes nothing, so this measures the base.
    before, before_embeddings = _measure(trainer, splits["test"])
    start = time.perf_counter()
    try:
        trainer.train(resume_from_checkpoint=checkpoint)
        trainer.check_finite()
    except (TrainingStoppedError, FloatingPointError) as error:
        if args.should_save:
            write_json(folder / RUN_FILE, key | {_STOPPED: str(error)})
        raise
    seconds = trainer.clock.before + time.perf_counter() - start
    # Without metrics of its last step the run was stopped after it, and is measured now.
    measured = read_json(folder / METRICS_FILE).get("steps")
    if checkpoint and trainer.state.global_step == steps_before == measured:
        raise ValueError(
            f"The run in {args.output_dir} had already ended, at step {trainer.state.global_step}; nothing was "
            "trained. Raise `--num_train_epochs` or `--max_steps` to go on, or name another `--output_dir`."
        )
    after, after_embeddings = _measure(trainer, splits["test"])
    embeddings = before_embeddings, after_embeddings
    queries = [QueryResults.from_embeddings(each, splits["test"]) for each in embeddings]
    trainable = describe_trainable(trainer.model)
    result = FitResult(before, after, *embeddings, *queries, trainable, seconds, trainer)
    # Not pushed yet, whatever `push_to_hub` says: there are no metrics beside it, nor a card.
    with words_for_a_full_disk(folder, "the result"):
        _save(trainer, splits, result)
    return result


def _save(trainer: FusionMatchTrainer, splits: datasets.DatasetDict, result: FitResult) -> None:
    """The trained model or adapter, what was found for each query, and the metrics."""
    args, folder = trainer.args, Path(trainer.args.output_dir)
    trainer.save_model(_internal_call=True)
    if args.should_save:
        best = trainer.state.best_model_checkpoint
        metrics = {
            "before": result.before,
            "after": result.after,
            "training_seconds": result.seconds,
            "steps": trainer.state.global_step,
            "best_checkpoint": best and Path(best).name,
            "trainable_parameters": result.trainable[-1][1],
            "parameters": result.trainable[-1][2],
            "pictures": {name: len(split) for name, split in splits.items()},
            "products": {name: len(set(split["product"])) for name, split in splits.items()},
            "labelled_pictures": sum(1 for texts in splits["train"]["texts"] if texts),
        }
        if isinstance(trainer.train_dataset, PartlyPairedDataset):
            metrics |= {
                "pseudo_pairs": trainer.train_dataset.found,
                "pseudo_pair_precision": trainer.train_dataset.precision,
            }
        result.before_queries.save(folder / QUERIES_BEFORE_FILE)
        result.after_queries.save(folder / QUERIES_FILE)
        # Last: it says that the run is whole.
        write_json(folder / METRICS_FILE, metrics)


def _steps(checkpoint: str) -> int:
    return json.loads((Path(checkpoint) / STATE_FILE).read_text(encoding="utf-8"))["global_step"]


def _measure(trainer: FusionMatchTrainer, dataset: datasets.Dataset) -> tuple[dict[str, float], CatalogueEmbeddings]:
    words = trainer.model.config.concept_words if "concepts" in dataset.column_names else None
    concepts = (ConceptCollector(), ConceptCollector()) if words else None
    embeddings = embed_catalogue(
        trainer.accelerator.unwrap_model(trainer.model),
        trainer.processing_class,
        dataset,
        batch_size=trainer.args.per_device_eval_batch_size,
        disable_tqdm=trainer.args.disable_tqdm,
        ranking_top_k=trainer.args.ranking_top_k,
        collect=concepts,
        **trainer.cached_features(dataset),
    )
    metrics = embeddings.metrics()
    if concepts is not None:
        metrics |= concept_metrics(words, dataset, *(each.log_probs for each in concepts))
    return metrics, embeddings

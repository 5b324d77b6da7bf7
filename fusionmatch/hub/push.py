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
Pushing a checkpoint or an adapter to the Hub: what goes, what stays, and one commit, so that a repository never shows
half of it.
"""

import json
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.constants import DEFAULT_REVISION, REPOCARD_NAME
from huggingface_hub.file_download import REGEX_COMMIT_HASH
from transformers.utils import logging

from .. import configuration_fusionmatch
from ..configuration_fusionmatch import FusionMatchConfig
from ..loading import fingerprint, load_pretrained, noted_settings
from ..modeling_fusionmatch import FusionMatchModel
from ..modeling_fusionmatch_ranking import FusionMatchForImageTextRetrieval
from ..processing_fusionmatch import FusionMatchProcessor
from ..repository import (
    ADAPTER_FILE,
    CONFIG_FILE,
    FINGERPRINT_FILE,
    SETTINGS_PATTERNS,
    SHARDS_PATTERNS,
    WEIGHTS_FILE,
    WEIGHTS_PATTERNS,
    UnsafeFolderError,
    check_settings,
    check_weights,
    worded_hub_errors,
)
from .model_card import HUB_NAME, card_for_hub
from .sentence_transformers_files import SENTENCE_TRANSFORMERS_FILES


logger = logging.get_logger(__name__)

# What loading reads and what is known of the weights. It takes the place of all that a push before left of it.
_MODEL_PATTERNS = (
    *(*SETTINGS_PATTERNS, *WEIGHTS_PATTERNS, "metrics.json"),
    *SENTENCE_TRANSFORMERS_FILES,
    "*_fusionmatch*.py",
)
_TEXT_PATTERNS = (REPOCARD_NAME, "LICENSE*", "NOTICE*")
REPORT_FILE = "report.html"
TRAINER_STATE_FILE = "trainer_state.json"
# What a training goes on from besides the model, that of FSDP and DeepSpeed among it. Trainer pickles most of it.
STATE_PATTERNS = (
    *(TRAINER_STATE_FILE, "optimizer*", "scheduler*", "scaler*", "rng_state*", "batch_sampler.safetensors"),
    *(
        "loss_weighting.safetensors",
        "teacher.safetensors",
        "clock.safetensors",
        "pytorch_model_fsdp*",
        "global_step*",
        "latest",
    ),
)
# Patterns of what stays -> why.
_STAYS = {
    "texts or pictures of the catalogue": (
        *(REPORT_FILE, "report.json", "queries*.parquet", "findings.jsonl", "quarantine.jsonl"),
    ),
    "left over from the training": (
        *("checkpoint-*", "feature_cache", "run.json", "losses.jsonl", "training_args.*", "runs", *STATE_PATTERNS),
    ),
}
# The core, name -> file: what imports nothing else of ours.
_CODE = {path.name: path for path in Path(configuration_fusionmatch.__file__).parent.glob("*_fusionmatch*.py")}
_PICKLE_STARTS = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK\x03\x04")
_TOKEN = re.compile(rb"\bhf_[A-Za-z0-9]{30,}\b")
# Files of numbers, where no token is looked for.
_TENSORS = (".safetensors", ".pt", ".pth", ".bin", ".distcp")


@dataclass
class PushedFolder:
    """
    What [`push_folder`] did.

    Args:
        repo_id (`str`): Repository, with its namespace.
        url (`str`): Page of the commit, or of the pull request.
        private (`bool`): Whether only its members see the repository.
        files (`dict[str, int]`): Size in bytes of each file that the folder has on the Hub now.
        left_out (`dict[str, str]`): What of the folder stayed, and why.
    """

    repo_id: str
    url: str
    private: bool
    files: dict[str, int]
    left_out: dict[str, str]


def push_folder(
    folder: str | Path,
    repo_id: str,
    *,
    base_model: str | None = None,
    base_revision: str | None = None,
    private: bool | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    token: str | None = None,
    create_pr: bool = False,
    include_report: bool = False,
    include_code: bool = False,
    resume_path: str | None = None,
    just_saved: bool = False,
) -> PushedFolder:
    r"""
    Pushes a checkpoint or an adapter to the Hub in one commit, after it was looked at; made on demand, the repository
    of an adapter is private. Texts and pictures of the catalogue, and what training left behind, stay. A checkpoint
    gets the files that `SentenceTransformer` reads, unless it has its own.

    Args:
        folder (`str` or `Path`):
            Folder of the checkpoint or adapter.
        repo_id (`str`):
            Name on the Hub, `user/name` or `organisation/name`.
        base_model (`str`, *optional*):
            Hub name of an adapter's base, where the adapter was made on a folder. The base is loaded, and has to have
            the same weights; the commit that has them is what the adapter on the Hub refers to.
        base_revision (`str`, *optional*):
            Revision of the base; defaults to the one that the adapter was made on, else to the newest.
        private (`bool`, *optional*):
            Whether a repository that is not there yet is made private; by default that of an adapter is. One that is
            there stays what it is; `True` is an error where that is public.
        revision (`str`, *optional*):
            Branch, made on demand; defaults to `main`. With `create_pr` the one that the pull request is for, which
            has to be there.
        commit_message (`str`, *optional*):
            First line of the commit.
        token (`str`, *optional*):
            Token; defaults to `HF_TOKEN` or that of `hf auth login`.
        create_pr (`bool`, *optional*, defaults to `False`):
            Whether to open a pull request in place of a commit to the branch.
        include_report (`bool`, *optional*, defaults to `False`):
            Whether `report.html`, which shows texts and pictures of the catalogue, goes as well. Without it, one that
            an earlier push left on the Hub is taken away.
        include_code (`bool`, *optional*, defaults to `False`):
            Whether the files of the model's own classes go along with a checkpoint, so that transformers loads it with
            `trust_remote_code=True` where FusionMatch is not installed. With FusionMatch they are never looked at.
        resume_path (`str`, *optional*):
            Sub-folder of the repository that gets the model once more, and with it what a training goes on from. That
            is the state of transformers' own Trainer, most of it pickled; loading never looks into sub-folders.
        just_saved (`bool`, *optional*, defaults to `False`):
            Whether a model in this process was saved there just now, so that the weights are all there. Otherwise a
            checkpoint's are compared with what its settings ask for, which is not for beside a training: the default
            precision is set for the whole process meanwhile.

    Returns:
        [`PushedFolder`]

    Raises:
        `FileNotFoundError`: the folder has neither a checkpoint nor an adapter.
        `ValueError`: the base of an adapter is not on the Hub, or has other weights, or the repository holds a
            checkpoint and this is an adapter, or the other way round, or it is public and should be private.
        [`~fusionmatch.repository.UnsafeFolderError`]: the folder is not whole, or holds what the Hub should not.
        `OSError`: the Hub refuses it; the message says why and what to do.
    """
    folder = Path(folder)
    files, left_out = choose_files(folder, include_report)
    adapter = ADAPTER_FILE in files
    contents: dict[str, Path | bytes] = dict(files)
    base = None
    if adapter:
        base, changed = _adapter_for_hub(folder, base_model, base_revision, token)
        contents |= _without_code(files) | changed
    elif base_model is not None:
        raise ValueError(f"{folder} is a checkpoint of its own, so `base_model` {base_model} has nothing to say.")
    else:
        if not just_saved:
            # On this device only the names and shapes of the weights are read; what is missing is an error.
            load_pretrained(folder, device_map="meta")
        coded = include_code or any(path.suffix == ".py" for path in files.values())
        contents |= _code_for_hub(folder) if coded else _without_code(files)
        if "modules.json" not in files:
            contents = SENTENCE_TRANSFORMERS_FILES | contents
    if resume_path is not None:
        again = {name: content for name, content in contents.items() if _fits(name, _MODEL_PATTERNS)}
        contents |= {f"{resume_path}/{name}": each for name, each in (again | _state_for_hub(folder)).items()}
    _check_no_token(contents, token)

    api = HfApi(token=token, library_name="fusionmatch")
    with worded_hub_errors(repo_id):
        # Without a word, what is made of a checkpoint is what the organisation makes of all of its repositories.
        made_private = True if private is None and adapter else private
        repo_id = api.create_repo(repo_id, private=made_private, exist_ok=True).repo_id
        if REPOCARD_NAME in files:
            card = files[REPOCARD_NAME].read_text(encoding="utf-8")
            contents[REPOCARD_NAME] = card_for_hub(card, repo_id, base).encode()
        there = api.repo_info(repo_id)
        if private and not there.private:
            refuse_public(repo_id)
        if made_private and not there.private:
            logger.warning_once(f"{repo_id} is public, so everybody can read this adapter and its card.")
        if revision is not None and revision != DEFAULT_REVISION:
            if not create_pr and not revision.startswith("refs/"):
                api.create_branch(repo_id, branch=revision, exist_ok=True)
            there = api.repo_info(repo_id, revision=revision)
        # Shards of another number, a tokenizer of another kind: what a push before left would be read with this one.
        names = [sibling.rfilename for sibling in there.siblings or ()]
        _check_kind(repo_id, names, adapter)
        gone = [name for name in names if name not in contents]
        # None of the folder of another checkpoint, each of which is one of its own.
        old = (*_MODEL_PATTERNS, REPORT_FILE)
        stale = [name for name in gone if _fits(name, old) or name.split("/")[0] == resume_path]
        commit = api.create_commit(
            repo_id,
            [
                *(CommitOperationAdd(name, content) for name, content in contents.items()),
                *(CommitOperationDelete(name) for name in stale),
            ],
            commit_message=commit_message or f"Upload {'adapter' if adapter else 'model'}",
            revision=revision,
            create_pr=create_pr,
            # Two who push at once: the second is told, in place of mixing with the first.
            parent_commit=there.sha,
        )
    sizes = {
        name: len(content) if isinstance(content, bytes) else content.stat().st_size
        for name, content in sorted(contents.items())
    }
    return PushedFolder(repo_id, commit.pr_url or commit.commit_url, bool(there.private), sizes, left_out)


def choose_files(folder: str | Path, include_report: bool = False) -> tuple[dict[str, Path], dict[str, str]]:
    """
    Looks at a folder as [`push_folder`] does before anything is sent.

    Args:
        folder (`str` or `Path`):
            Folder of a checkpoint or adapter.
        include_report (`bool`, *optional*, defaults to `False`):
            Whether `report.html` goes.

    Returns:
        `tuple[dict[str, Path], dict[str, str]]`: by name the files that go, and of everything else the reason why it
        stays.

    Raises:
        `FileNotFoundError`: the folder has neither a checkpoint nor an adapter.
        [`~fusionmatch.repository.UnsafeFolderError`]: it is not whole, or holds what the Hub should not.
    """
    folder = Path(folder)
    check_settings(folder)
    check_weights(folder)
    adapter = (folder / ADAPTER_FILE).is_file()
    needed = (ADAPTER_FILE, FINGERPRINT_FILE) if adapter else (CONFIG_FILE, "processor_config.json")
    for name in needed:
        if not (folder / name).is_file():
            raise UnsafeFolderError(
                f"{folder} has no `{name}`, without which nobody could use it. "
                + (
                    "Only adapters that FusionMatchTrainer saved are pushed."
                    if adapter
                    else "Save the processor there as well, with `processor.save_pretrained`."
                )
            )
    going = (*_MODEL_PATTERNS, *_TEXT_PATTERNS, *((REPORT_FILE,) if include_report else ()))
    files, left_out = {}, {}
    whole = (folder / WEIGHTS_FILE).is_file()
    for path in sorted(folder.iterdir()):
        why = next((why for why, patterns in _STAYS.items() if _fits(path.name, patterns)), "no part of the model")
        own = _CODE.get(path.name)
        if path.suffix == ".py" and (own is None or own.read_bytes() != path.read_bytes()):
            raise UnsafeFolderError(
                f"{folder} holds code ({path.name}) that is not this FusionMatch's, and others might run it. Take it "
                "out; FusionMatch loads its own models without."
            )
        if whole and _fits(path.name, SHARDS_PATTERNS):
            left_out[path.name] = f"of no use beside {WEIGHTS_FILE}"
        elif path.is_file() and _fits(path.name, going):
            files[path.name] = path
        else:
            left_out[path.name] = why
    for path in files.values():
        if not path.resolve().is_relative_to(folder.resolve()):
            raise UnsafeFolderError(
                f"{path} is a link to {path.resolve()}, outside of the folder. Copy the file there."
            )
        with path.open("rb") as file:
            if file.read(4).startswith(_PICKLE_STARTS):
                raise UnsafeFolderError(f"{path} is a pickle or an archive under another name. Take it out.")
    return files, left_out


def _fits(name: str, patterns: tuple[str, ...]) -> bool:
    return "/" not in name and any(Path(name).match(pattern) for pattern in patterns)


def _code_for_hub(folder: Path) -> dict[str, Path | bytes]:
    """The core files, and the settings that name the classes in them."""
    config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    processor = json.loads((folder / "processor_config.json").read_text(encoding="utf-8"))
    classes = {
        "AutoConfig": FusionMatchConfig,
        "AutoModel": FusionMatchModel,
        "AutoModelForZeroShotImageClassification": FusionMatchModel,
    }
    if FusionMatchForImageTextRetrieval.__name__ in (config.get("architectures") or ()):
        classes["AutoModelForPreTraining"] = FusionMatchForImageTextRetrieval
    names = {auto: f"{each.__module__.split('.')[-1]}.{each.__name__}" for auto, each in classes.items()}
    config["auto_map"] = names
    module = FusionMatchProcessor.__module__.split(".")[-1]
    processor["auto_map"] = {"AutoProcessor": f"{module}.{FusionMatchProcessor.__name__}"}
    changed = {CONFIG_FILE: config, "processor_config.json": processor}
    return _CODE | {name: (json.dumps(each, indent=2) + "\n").encode() for name, each in changed.items()}


def _without_code(files: dict[str, Path]) -> dict[str, bytes]:
    """The settings that name code, as those of what was loaded with `trust_remote_code`, without its names."""
    changed = {}
    for name in files.keys() & {CONFIG_FILE, "processor_config.json", "tokenizer_config.json"}:
        settings = json.loads(files[name].read_text(encoding="utf-8"))
        if settings.pop("auto_map", None) is not None:
            changed[name] = (json.dumps(settings, indent=2) + "\n").encode()
    return changed


def _state_for_hub(folder: Path) -> dict[str, Path | bytes]:
    """What a training goes on from besides the model, by its path in the folder."""
    paths = {path.relative_to(folder): path for path in sorted(folder.rglob("*"))}
    going: dict[str, Path | bytes] = {
        name.as_posix(): path
        for name, path in paths.items()
        if path.is_file() and not path.is_symlink() and _fits(name.parts[0], STATE_PATTERNS)
    }
    if TRAINER_STATE_FILE in going:
        state = json.loads((folder / TRAINER_STATE_FILE).read_text(encoding="utf-8"))
        # A path of this machine. A training that goes on finds the best checkpoint by its step, if it is there.
        state["best_model_checkpoint"] = None
        going[TRAINER_STATE_FILE] = (json.dumps(state, indent=2, sort_keys=True) + "\n").encode()
    return going


def refuse_public(repo_id: str) -> NoReturn:
    """Raises `ValueError` for a public repository that was asked to be private."""
    raise ValueError(
        f"{repo_id} is public already, and `private=True` (`--private True`, in a training `--hub_private_repo True`) "
        "makes new repositories private only. Make it private in its settings on the Hub, push under another name, or "
        "leave the argument out."
    )


def _check_kind(repo_id: str, names: list[str], adapter: bool) -> None:
    """Raises where what is pushed would take the place of something of the other kind."""
    there = ADAPTER_FILE if ADAPTER_FILE in names else CONFIG_FILE
    if there in names and (there == ADAPTER_FILE) != adapter:
        kinds = ("an adapter", "a checkpoint of its own")
        old, new = kinds if there == ADAPTER_FILE else kinds[::-1]
        raise ValueError(
            f"{repo_id} holds {old} (`{there}`), and this is {new}: it would take its place. Push it under another "
            f"name, or take `{there}` out of the repository first."
        )


def _adapter_for_hub(
    folder: Path, base_model: str | None, base_revision: str | None, token: str | None
) -> tuple[str, dict[str, bytes]]:
    """The Hub name of an adapter's base, and the files of the adapter that have to say so."""
    config = json.loads((folder / ADAPTER_FILE).read_text(encoding="utf-8"))
    note = json.loads((folder / FINGERPRINT_FILE).read_text(encoding="utf-8"))
    made_on = str(config.get("base_model_name_or_path") or "")
    if base_model is None:
        if Path(made_on).exists() or not HUB_NAME.fullmatch(made_on):
            raise ValueError(
                f"The adapter {folder} was made on the base in the folder {made_on}, which nobody else has. Push that "
                "one first (`fusionmatch push BASE USER/BASE`), then name it here: `--base_model USER/BASE`."
            )
        base_model, base_revision = made_on, base_revision or config.get("revision")
    revision = check_base(base_model, note, token, base_revision)
    config |= {"base_model_name_or_path": base_model, "revision": revision}
    note |= {"base_model_name_or_path": base_model}
    changed = {ADAPTER_FILE: config, FINGERPRINT_FILE: note}
    return base_model, {name: (json.dumps(each, indent=2) + "\n").encode() for name, each in changed.items()}


def check_base(base_model: str, note: dict[str, Any], token: str | None = None, revision: str | None = None) -> str:
    """
    Loads a base from the Hub and compares it with the one that an adapter was made on; each commit once a process.

    Args:
        base_model (`str`):
            Hub name of the base.
        note (`dict[str, Any]`):
            `fingerprint`, `dtype` and `settings`, as [`~fusionmatch.loading.write_fingerprint`] writes them.
        token (`str`, *optional*):
            Token.
        revision (`str`, *optional*):
            Branch, tag or commit of the base; defaults to `main`.

    Returns:
        `str`: the commit that was loaded.

    Raises:
        `ValueError`: it is a folder, or has other weights.
        `OSError`: the Hub does not give it; the message says why and what to do.
    """
    if Path(base_model).exists() or not HUB_NAME.fullmatch(base_model):
        raise ValueError(f"`base_model` must be the name of the base on the Hub (`user/name`), got {base_model!r}.")
    if revision is None or not REGEX_COMMIT_HASH.fullmatch(revision):
        with worded_hub_errors(base_model, reading=True):
            revision = HfApi(token=token).repo_info(base_model, revision=revision).sha
    found = _fingerprint_of(base_model, revision, note["dtype"], json.dumps(noted_settings(note)), token)
    if found is None:
        logger.warning(f"The adapter was made on a base in {note['dtype']}; that {base_model} is it was not checked.")
    elif found != note["fingerprint"]:
        raise ValueError(
            f"{base_model} is not the base that the adapter was made on: it has the fingerprint {found}, the adapter "
            f"notes {note['fingerprint']}. Push the right base, or name it."
        )
    return revision


# A training that pushes as it goes asks each time.
@lru_cache(maxsize=4)
def _fingerprint_of(name: str, commit: str, dtype: str, settings: str, token: str | None) -> str | None:
    quantised = "," in dtype
    loading = {} if quantised else {"dtype": dtype.removeprefix("torch.")}
    model, _ = load_pretrained(name, revision=commit, token=token, **loading, **json.loads(settings))
    return None if quantised else fingerprint(model)


def _check_no_token(contents: dict[str, Path | bytes], token: str | None) -> None:
    own = [each.encode() for each in (token, get_token()) if each]
    for name, content in contents.items():
        if name.endswith(_TENSORS):
            continue
        data = content if isinstance(content, bytes) else content.read_bytes()
        if _TOKEN.search(data) or any(each in data for each in own):
            raise UnsafeFolderError(f"`{name}` holds a token for the Hub, which everybody would see. Take it out.")

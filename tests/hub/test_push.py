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
"""Pushing to a Hub and loading from it by name, with everything that goes wrong on the way."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading

import pytest
import torch
from huggingface_hub import ModelCard
from peft import get_peft_model
from safetensors.torch import load_file, save_file

from fusionmatch.hub import write_model_card
from fusionmatch.loading import fingerprint, load_pretrained, write_fingerprint
from fusionmatch.training import lora_config

from ..core.tiny import perturb, tiny_inputs, tiny_model, tiny_pictures, tiny_processor
from .client import ROOT, hub_environment
from .loopback_hub import Fault
from .test_model_card import FACTS, SPLITS, measured


pytestmark = pytest.mark.usefixtures("no_token_anywhere")

PRIVATE = ("queries.parquet", "queries_before.parquet", "findings.jsonl", "quarantine.jsonl", "report.html")
LEFTOVERS = ("run.json", "losses.jsonl", "training_args.json", "optimizer.pt", "notes.txt")
PROCESSOR = {"processor_config.json", "tokenizer.json", "tokenizer_config.json"}
CHECKPOINT = {"config.json", "model.safetensors"} | PROCESSOR
ADAPTER = {"adapter_config.json", "adapter_model.safetensors", "fusionmatch_base.json", "README.md"} | PROCESSOR

# Loads a name and keeps what the model makes of some inputs.
EMBED = """if True:
    import json, sys, torch
    from safetensors.torch import save_file
    from fusionmatch.loading import load_pretrained
    from tests.core.tiny import tiny_inputs
    name, output, settings = sys.argv[1:4]
    model, processor = load_pretrained(name, **json.loads(settings))
    with torch.no_grad():
        outputs = model(**tiny_inputs())
    save_file({key: outputs[key].contiguous() for key in ("image_embeds", "text_embeds")}, output)
    print(type(model).__name__, type(processor).__name__, model.config.name_or_path)
"""


def embeddings(model):
    with torch.no_grad():
        outputs = model(**tiny_inputs())
    return {name: outputs[name] for name in ("image_embeds", "text_embeds")}


def same(path, expected):
    found = load_file(path)
    for name, tensor in expected.items():
        assert torch.allclose(found[name], tensor, atol=1e-6), name
    return True


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pushed") / "base"
    model = tiny_model()
    perturb(model)
    model.save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def adapter(base, tmp_path_factory):
    """As a training leaves it, with all that lies beside."""
    folder = tmp_path_factory.mktemp("pushed") / "adapter"
    model, processor = load_pretrained(base)
    adapted = get_peft_model(model, lora_config(model))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    adapted.save_pretrained(folder)
    processor.save_pretrained(folder)
    write_fingerprint(folder, str(base), fingerprint(adapted), "torch.float32")
    write_model_card(folder, measured(), SPLITS, base=str(base), **FACTS)
    for name in (*PRIVATE, *LEFTOVERS):
        (folder / name).write_text("SECRETWORD")
    for name in ("checkpoint-3", "feature_cache"):
        (folder / name).mkdir()
        (folder / name / "model.safetensors").write_text("SECRETWORD")
    return folder


@pytest.fixture(scope="module")
def sharded(base, tmp_path_factory):
    """The base, its weights in some files."""
    folder = tmp_path_factory.mktemp("pushed") / "sharded"
    load_pretrained(base)[0].save_pretrained(folder, max_shard_size="80KB")
    tiny_processor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def base_on_hub(client, hub, base):
    pushed = client.command("push", base, "acme/base")
    assert pushed.wait() == 0, pushed.text
    return "acme/base"


@pytest.fixture(scope="module")
def adapter_on_hub(client, hub, adapter, base_on_hub):
    pushed = client.command("push", adapter, "acme/adapter", "--base_model", base_on_hub)
    assert pushed.wait() == 0, pushed.text
    return "acme/adapter", pushed.text


def made_on_base(adapter, folder, name):
    """The adapter as it would be, had its base been loaded by that name."""
    shutil.copytree(adapter, folder)
    for file in ("adapter_config.json", "fusionmatch_base.json"):
        content = json.loads((folder / file).read_text()) | {"base_model_name_or_path": name}
        (folder / file).write_text(json.dumps(content))
    return folder


def fails(call, *words):
    """The command says in one line what is wrong, and exits with 1."""
    assert call.wait() == 1, call.text[-2000:]
    assert "Traceback" not in call.text
    message = call.text.strip().splitlines()[-1]
    assert message.startswith("fusionmatch "), call.text
    for word in words:
        assert word in message, message


def refuses(client, name, *words, **environment):
    """Loading says in one line what is wrong."""
    code = """if True:
        import sys
        from fusionmatch.loading import load_pretrained
        try:
            load_pretrained(sys.argv[1])
        except (OSError, ValueError) as error:
            print("REFUSED", error)
    """
    message = client.run(code, name, **environment).split("REFUSED ")[1].strip()
    assert "\n" not in message
    for word in words:
        assert word in message, message


class TestBase:
    def test_is_public_and_one_commit(self, base_on_hub, hub, base):
        repository = hub.repositories["models", base_on_hub]
        assert not repository.private
        assert [commit.title for commit in repository.commits[1:]] == ["Upload model"]
        assert hub.files(base_on_hub).keys() == CHECKPOINT
        assert hub.files(base_on_hub)["model.safetensors"] == (base / "model.safetensors").read_bytes()

    def test_is_what_it_was_when_loaded_by_name(self, base_on_hub, client, base, tmp_path):
        printed = client.run(EMBED, base_on_hub, tmp_path / "found", "{}").split()
        assert printed[-3:] == ["FusionMatchModel", "FusionMatchProcessor", base_on_hub]
        assert same(tmp_path / "found", embeddings(load_pretrained(base)[0]))

    def test_a_token_in_a_file_stops_the_push(self, client, hub, base, tmp_path):
        folder = shutil.copytree(base, tmp_path / "base")
        for token in (hub.token("alice"), f"hf_{'a' * 34}"):
            (folder / "README.md").write_text(f"use_auth_token={token}")
            fails(client.command("push", folder, "acme/leak"), "`README.md` holds a token")
        assert ("models", "acme/leak") not in hub.repositories

    def test_what_was_loaded_from_a_repository_with_code_is_pushed_without_its_names(
        self, client, hub, base, tmp_path
    ):
        folder = shutil.copytree(base, tmp_path / "base")
        for name, auto_map in (
            ("config.json", {"AutoModel": "modeling_fusionmatch.FusionMatchModel"}),
            ("processor_config.json", {"AutoProcessor": "processing_fusionmatch.FusionMatchProcessor"}),
        ):
            content = json.loads((folder / name).read_text())
            (folder / name).write_text(json.dumps(content | {"auto_map": auto_map}))
        assert client.command("push", folder, "acme/nocode").wait() == 0
        files = hub.files("acme/nocode")
        assert files.keys() == CHECKPOINT
        for name in ("config.json", "processor_config.json"):
            assert json.loads(files[name]) == json.loads((base / name).read_text())

    def test_the_same_again_is_no_commit(self, base_on_hub, client, hub, base):
        before = len(hub.repositories["models", base_on_hub].commits)
        assert client.command("push", base, base_on_hub).wait() == 0
        assert len(hub.repositories["models", base_on_hub].commits) == before


class TestAdapter:
    def test_without_its_base_on_the_hub_nothing_is_sent(self, client, hub, adapter, base):
        fails(client.command("push", adapter, "acme/lost"), str(base), "--base_model USER/BASE")
        assert ("models", "acme/lost") not in hub.repositories

    def test_on_another_base_nothing_is_sent(self, client, hub, adapter, tmp_path):
        other = tiny_model(seed=7)
        other.save_pretrained(tmp_path)
        tiny_processor().save_pretrained(tmp_path)
        assert client.command("push", tmp_path, "acme/other").wait() == 0
        call = client.command("push", adapter, "acme/lost", "--base_model", "acme/other")
        fails(call, "acme/other is not the base", fingerprint(other))
        assert ("models", "acme/lost") not in hub.repositories

    @pytest.mark.parametrize("made_on", ["../base", "./base", ".runs/base"])
    def test_what_begins_with_a_dot_is_a_folder(self, made_on, client, hub, adapter, tmp_path):
        folder = made_on_base(adapter, tmp_path / "adapter", made_on)
        fails(client.command("push", folder, "acme/lost"), f"in the folder {made_on}", "--base_model USER/BASE")
        assert ("models", "acme/lost") not in hub.repositories

    def test_made_on_a_base_of_the_hub_it_is_compared_and_pinned(
        self, client, hub, adapter, base, base_on_hub, tmp_path, since
    ):
        fails(client.command("push", made_on_base(adapter, tmp_path / "typo", "runs/base"), "acme/lost"), "runs/base")
        folder = made_on_base(adapter, tmp_path / "adapter", base_on_hub)
        assert client.command("push", folder, "acme/by-name").wait() == 0
        head = hub.repositories["models", base_on_hub].branches["main"]
        config, note = (hub.files("acme/by-name")[name] for name in ("adapter_config.json", "fusionmatch_base.json"))
        assert json.loads(config)["revision"] == head
        assert json.loads(config)["base_model_name_or_path"] == json.loads(note)["base_model_name_or_path"]
        assert str(base.parent).encode() not in config + note
        note = json.loads(note) | {"fingerprint": "0" * 32}
        (folder / "fusionmatch_base.json").write_text(json.dumps(note))
        fails(client.command("push", folder, "acme/lost"), f"{base_on_hub} is not the base", "0" * 32)
        assert ("models", "acme/lost") not in hub.repositories

    def test_a_base_that_changed_is_looked_at_again_in_the_same_process(self, client, hub, base, adapter, tmp_path):
        tiny_model(seed=11).save_pretrained(tmp_path)
        tiny_processor().save_pretrained(tmp_path)
        code = """if True:
            import sys
            from fusionmatch.hub import push_folder
            base, other, adapter = sys.argv[1:]
            push_folder(base, "acme/moving")
            push_folder(adapter, "acme/first", base_model="acme/moving")
            moved = push_folder(other, "acme/moving")
            try:
                push_folder(adapter, "acme/second", base_model="acme/moving")
            except ValueError as error:
                print("REFUSED", error)
            # On the commit that it was made on it still is what it was.
            from huggingface_hub import HfApi
            commit = [commit.commit_id for commit in HfApi().list_repo_commits("acme/moving")][1]
            push_folder(adapter, "acme/third", base_model="acme/moving", base_revision=commit)
        """
        printed = client.run(code, base, tmp_path, adapter)
        assert "REFUSED acme/moving is not the base" in printed
        assert ("models", "acme/second") not in hub.repositories
        first, third = (json.loads(hub.files(f"acme/{name}")["adapter_config.json"]) for name in ("first", "third"))
        assert first["revision"] == third["revision"] == hub.repositories["models", "acme/moving"].commits[1].sha

    def test_does_not_take_the_place_of_a_base_nor_the_other_way_round(
        self, adapter_on_hub, base_on_hub, client, hub, adapter, base
    ):
        name = adapter_on_hub[0]
        before = hub.files(base_on_hub), hub.files(name)
        call = client.command("push", adapter, base_on_hub, "--base_model", base_on_hub)
        fails(call, f"{base_on_hub} holds a checkpoint of its own", "another name")
        fails(client.command("push", base, name), f"{name} holds an adapter", "another name")
        assert (hub.files(base_on_hub), hub.files(name)) == before

    def test_is_private_and_holds_nothing_of_the_catalogue(self, adapter_on_hub, hub):
        name, printed = adapter_on_hub
        assert hub.repositories["models", name].private
        assert len(hub.repositories["models", name].commits) == 2
        assert hub.files(name).keys() == ADAPTER
        assert not any(b"SECRETWORD" in content for content in hub.files(name).values())
        left_out = printed.split("Left out:")[1]
        for line in (*PRIVATE, *LEFTOVERS, "checkpoint-3", "feature_cache"):
            assert re.search(rf"^  {re.escape(line)} ", left_out, re.MULTILINE), line

    def test_says_where_on_the_hub_its_base_is(self, adapter_on_hub, hub, adapter, base_on_hub, base):
        files = hub.files(adapter_on_hub[0])
        config = json.loads(files["adapter_config.json"])
        assert config["base_model_name_or_path"] == base_on_hub
        assert config["revision"] == hub.repositories["models", base_on_hub].branches["main"]
        assert not any(str(base.parent).encode() in content for content in files.values())
        card = ModelCard(files["README.md"].decode())
        assert (card.data.base_model, card.data.base_model_relation) == (base_on_hub, "adapter")
        assert f"for the image-text matching model `{base_on_hub}`" in card.text
        assert (card.text.split()[:2], card.data.model_name) == (["#", "adapter"], "adapter")
        assert "image-text-retrieval" in card.data.tags
        assert card.data.eval_results == ModelCard.load(adapter / "README.md").data.eval_results
        assert f'load_pretrained("{adapter_on_hub[0]}")' in card.text

    def test_is_what_it_was_when_loaded_by_name(self, adapter_on_hub, client, hub, adapter, tmp_path):
        expected = embeddings(load_pretrained(adapter)[0])
        client.run(EMBED, adapter_on_hub[0], tmp_path / "found", "{}")
        assert same(tmp_path / "found", expected)
        # From the cache alone: PEFT's own look-ups included, nobody is asked.
        before = len(hub.log)
        client.run(EMBED, adapter_on_hub[0], tmp_path / "cached", '{"local_files_only": true}')
        assert same(tmp_path / "cached", expected)
        assert hub.requests(".", before) == []

    def test_is_merged_by_name_as_the_advice_says(self, adapter_on_hub, base_on_hub, client, hub, adapter, tmp_path):
        name, head = adapter_on_hub[0], hub.repositories["models", adapter_on_hub[0]].branches["main"]
        code = """if True:
            import sys
            from fusionmatch.commands.arguments import ModelArguments
            from fusionmatch.commands.models import load_base
            try:
                load_base(ModelArguments(sys.argv[1], model_revision=sys.argv[2]))
            except ValueError as error:
                print(error)
        """
        assert f"`fusionmatch adapter merge {name} --revision {head} --output_dir " in client.run(code, name, head)
        merge = ("adapter", "merge", name, "--revision", head, "--output_dir")
        merged = client.command(*merge, tmp_path / "merged")
        assert merged.wait() == 0, merged.text
        expected = embeddings(load_pretrained(adapter)[0].merge_and_unload())
        found = embeddings(load_pretrained(tmp_path / "merged")[0])
        assert all(torch.allclose(found[key], expected[key], atol=1e-5) for key in expected)
        for other, words in ((base_on_hub, "is a checkpoint and no adapter"), ("acme/nothing", "no such repository")):
            fails(client.command("adapter", "merge", other, "--output_dir", tmp_path / "other"), other, words)

    def test_stays_on_the_commit_of_its_base(self, adapter_on_hub, base_on_hub, client, hub, adapter, tmp_path):
        repository = hub.repositories["models", base_on_hub]
        other = tiny_model(seed=8)
        other.save_pretrained(tmp_path / "other")
        weights = (tmp_path / "other" / "model.safetensors").read_bytes()
        head = repository.branches["main"]
        repository.commit("main", "other weights", "bob", repository.at("main").files | {"model.safetensors": weights})
        try:
            client.run(EMBED, adapter_on_hub[0], tmp_path / "found", "{}")
        finally:
            repository.branches["main"] = head
        assert same(tmp_path / "found", embeddings(load_pretrained(adapter)[0]))

    def test_who_is_no_member_does_not_see_it(self, adapter_on_hub, client, hub, tmp_path):
        # With a cache of its own; that of `alice` holds it.
        before = len(hub.log)
        settings = json.dumps({"cache_dir": str(tmp_path), "token": hub.token("carol")})
        call = client.start(EMBED, adapter_on_hub[0], tmp_path / "found", settings)
        assert call.wait() == 1
        assert "it is private and the token may not see it" in call.text
        assert not hub.requests("resolve", before)

    def test_offline_from_the_cache_in_a_new_process(
        self, adapter_on_hub, hub, hub_home, adapter, base_on_hub, tmp_path
    ):
        code = EMBED + (
            "    import huggingface_hub\n"
            "    assert huggingface_hub.constants.HF_HUB_OFFLINE\n"
            "    base, _ = load_pretrained(sys.argv[4])\n"
            "    print('BASE', base.config.name_or_path)\n"
            "    for name in ('acme/never', '/no/such/folder'):\n"
            "        try:\n"
            "            load_pretrained(name)\n"
            "        except OSError as error:\n"
            "            print('REFUSED', error)\n"
        )
        before = len(hub.log)
        environment = hub_environment(hub.endpoint, hub_home, HF_HUB_OFFLINE="1")
        command = [sys.executable, "-c", code, adapter_on_hub[0], str(tmp_path / "found"), "{}", base_on_hub]
        run = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, check=False)
        assert run.returncode == 0, run.stderr[-2000:]
        assert same(tmp_path / "found", embeddings(load_pretrained(adapter)[0]))
        assert hub.requests(".", before) == []
        assert f"BASE {base_on_hub}" in run.stdout
        refused = [line for line in run.stdout.splitlines() if line.startswith("REFUSED")]
        assert "HF_HUB_OFFLINE" in refused[0]
        assert "no folder /no/such/folder" in refused[1]


@pytest.mark.parametrize(
    ("user", "fault", "words"),
    [
        ("nobody", None, ["does not know the token (401)", "hf auth login", "HF_TOKEN"]),
        ("", None, ["(401)", "hf auth login"]),
        ("carol", None, ["may not write to acme/refused (403)", "a name of your own"]),
        ("alice", Fault("POST /api/repos/create", 429, {"Retry-After": "7"}), ["(429)", "Wait 7 seconds"]),
        ("alice", Fault("POST .*/commit/", 503), ["troubles of its own (503)", "later"]),
        ("alice", Fault("POST /api/repos/create", cut_after=1), ["could not be reached", "start the same again"]),
    ],
    ids=["unknown token", "no token", "no right", "too many requests", "server error", "network"],
)
def test_a_refused_push_says_what_to_do(user, fault, words, client, hub, base, since):
    hub.faults += [] if fault is None else [fault]
    token = {"": "", "nobody": "hf_of_nobody"}.get(user) if user in ("", "nobody") else hub.token(user)
    call = client.command("push", base, "acme/refused", HF_TOKEN=token)
    fails(call, *words)
    if ("models", "acme/refused") in hub.repositories:
        assert hub.files("acme/refused") == {}


def test_loading_by_name_says_what_to_do(client, hub, base, since):
    refuses(client, "acme/nothing", "no such repository on the Hub", "acme/nothing")
    gated = hub.create("meta/gated", gated=True)
    files = {path.name: path.read_bytes() for path in base.iterdir()}
    gated.commit("main", "model", "meta", files)
    refuses(client, "meta/gated", "is gated", f"{hub.endpoint}/meta/gated")
    hub.admitted.add(("alice", "meta/gated"))
    assert "FusionMatchModel" in client.run(EMBED, "meta/gated", base.parent / "gated", '{"revision": "main"}')
    call = client.start(EMBED, "meta/gated", base.parent / "gated", '{"revision": "v9"}')
    assert call.wait() == 1
    assert "has no such revision" in call.text
    hub.create("meta/down").commit("main", "model", "meta", files)
    hub.faults.append(Fault("GET /api/models/meta/down", 503, times=9))
    refuses(client, "meta/down", "troubles of its own (503)")
    hub.faults[:] = [Fault("GET /api/models/meta/down", 403, times=9)]
    refuses(client, "meta/down", "may not read meta/down (403)", "settings/tokens")
    disabled = {"X-Error-Message": "Access to this resource is disabled."}
    hub.faults[:] = [Fault("GET /api/models/meta/down", 403, disabled, times=9)]
    refuses(client, "meta/down", "has disabled meta/down (403)")


def test_pickles_and_code_are_not_even_fetched(client, hub, base, since):
    config = json.loads((base / "config.json").read_text())
    foreign = config | {"auto_map": {"AutoModel": "modeling_evil.Evil"}}
    hub.create("meta/code").commit(
        "main", "model", "meta", {"config.json": json.dumps(foreign).encode(), "modeling_evil.py": b"raise SystemExit"}
    )
    hub.create("meta/pickle").commit(
        "main", "model", "meta", {"config.json": json.dumps(config).encode(), "pytorch_model.bin": b"\x80\x04"}
    )
    hub.create("meta/bert").commit(
        "main", "model", "meta", {"config.json": b'{"model_type": "bert"}', "model.safetensors": b"large"}
    )
    refuses(client, "meta/code", "modeling_evil.Evil")
    refuses(client, "meta/pickle", "holds no weights (`*.safetensors`)")
    refuses(client, "meta/bert", "configuration of a `bert` model")
    assert {request.path.split("/")[-1] for request in hub.requests("GET .*/resolve/", since)} == {"config.json"}


class TestInterrupted:
    def test_a_killed_push_shows_nothing_and_sends_the_rest_when_repeated(self, client, hub, sharded, since):
        hold = threading.Event()
        hub.faults.append(Fault("PUT /lfs/models/acme/cut/", hold=hold, cut_after=1000))
        call = client.command("push", sharded, "acme/cut")
        others = len(list(sharded.glob("model-*.safetensors"))) - 1
        hub.wait_until(lambda: hub.requests("PUT /lfs/models/acme/cut/", since))
        hub.wait_until(lambda: len(hub.repositories["models", "acme/cut"].objects) == others)
        os.kill(call.pid, signal.SIGKILL)
        assert call.wait() == -signal.SIGKILL
        hold.set()
        assert hub.files("acme/cut") == {}
        before = len(hub.log)
        assert client.command("push", sharded, "acme/cut").wait() == 0
        assert len(hub.requests("PUT /lfs/models/acme/cut/", before)) == 1
        assert len(hub.repositories["models", "acme/cut"].commits) == 2
        assert hub.files("acme/cut").keys() == {path.name for path in sharded.iterdir()}

    def test_a_connection_that_is_cut_and_a_busy_hub_are_tried_again(self, client, hub, sharded, since):
        hub.faults.append(Fault("PUT /lfs/models/acme/shaky/", cut_after=1000))
        hub.faults.append(Fault("POST .*/preupload/", 503, {"Retry-After": "0"}))
        assert client.command("push", sharded, "acme/shaky").wait() == 0
        assert hub.files("acme/shaky").keys() == {path.name for path in sharded.iterdir()}
        # One was read as far as the connection went.
        assert [request.read for request in hub.requests("PUT", since) if request.status == 0] == [1000]

    def test_a_killed_download_goes_on_with_what_is_missing(
        self, client, hub, hub_home, base, sharded, tmp_path, since
    ):
        repository = hub.create("acme/pulled")
        repository.commit("main", "model", "acme", {path.name: path.read_bytes() for path in sharded.iterdir()})
        hold = threading.Event()
        hub.faults.append(Fault("GET /acme/pulled/resolve/.*/model-.*safetensors", hold=hold))
        call = client.start(EMBED, "acme/pulled", tmp_path / "found", "{}")
        shards = len(list(sharded.glob("model-*.safetensors")))
        weights = "GET /acme/pulled/resolve/.*/model-.*safetensors"
        hub.wait_until(lambda: sum(each.status == 200 for each in hub.requests(weights, since)) == shards - 1)
        cached = hub_home / "hub" / "models--acme--pulled"
        hub.wait_until(lambda: len(list(cached.glob("snapshots/*/model-*.safetensors"))) == shards - 1)
        os.kill(call.pid, signal.SIGKILL)
        call.wait()
        hold.set()
        before = len(hub.log)
        hub.faults.append(Fault(weights, cut_after=500))
        client.run(EMBED, "acme/pulled", tmp_path / "found", "{}")
        assert same(tmp_path / "found", embeddings(load_pretrained(base)[0]))
        fetched = {request.path for request in hub.requests(weights, before)}
        assert 1 <= len(fetched) < shards

    def test_two_who_push_at_once_do_not_mix(self, client, hub, base, sharded, tmp_path, since):
        hold, changed = threading.Event(), tmp_path / "changed"
        tiny_model(seed=9).save_pretrained(changed)
        tiny_processor().save_pretrained(changed)
        assert client.command("push", base, "acme/shared").wait() == 0
        hub.faults.append(Fault("POST .*/acme/shared/commit/", hold=hold))
        first = client.command("push", sharded, "acme/shared")
        hub.wait_until(lambda: len(hub.requests("POST .*/acme/shared/commit/", since)) == 2)
        second = client.start(
            "import sys; from fusionmatch.hub import push_folder; push_folder(sys.argv[1], 'acme/shared', "
            "commit_message='by bob', token=sys.argv[2], private=False)",
            changed,
            hub.token("bob"),
        )
        assert second.wait() == 0, second.text
        hold.set()
        fails(first, "Somebody else changed acme/shared", "start the same command again")
        commits = hub.repositories["models", "acme/shared"].commits
        assert [(commit.author, commit.title) for commit in commits[2:]] == [("bob", "by bob")]
        assert hub.files("acme/shared").keys() == CHECKPOINT
        # The shards take the place of the one file, and the other way round.
        assert client.command("push", sharded, "acme/shared").wait() == 0
        assert hub.files("acme/shared").keys() == {path.name for path in sharded.iterdir()}


def test_branches_pull_requests_and_the_report(client, hub, adapter, base_on_hub):
    options = ["--base_model", base_on_hub, "--include_report", "True", "--private", "False"]
    assert client.command("push", adapter, "acme/report", *options, "--revision", "draft").wait() == 0
    assert not hub.repositories["models", "acme/report"].private
    assert hub.files("acme/report") == {}
    assert hub.files("acme/report", "draft").keys() == ADAPTER | {"report.html"}
    asked = client.command("push", adapter, "acme/report", "--base_model", base_on_hub, "--create_pr", "True")
    assert asked.wait() == 0, asked.text
    assert "/discussions/" in asked.text
    assert hub.files("acme/report") == {}
    # A pull request is for the branch that is named, and a report that does not go again does not stay there.
    options = ["--base_model", base_on_hub, "--create_pr", "True", "--revision", "draft"]
    asked = client.command("push", adapter, "acme/report", *options)
    assert asked.wait() == 0, asked.text
    request = f"refs/pr/{asked.text.split('/discussions/')[1].split()[0]}"
    assert hub.files("acme/report", request).keys() == ADAPTER
    fails(client.command("push", adapter, "acme/report", *options[:-1], "no-such"), "no such revision")
    assert hub.repositories["models", "acme/report"].branches.keys().isdisjoint({"no-such"})


def test_what_should_be_private_does_not_go_where_everybody_sees_it(client, hub, base, adapter, base_on_hub):
    hub.create("acme/open")
    fails(
        client.command("push", base, "acme/open", "--private", "True"), "acme/open is public already", "another name"
    )
    branch = ["--private", "True", "--revision", "draft"]
    fails(client.command("push", base, "acme/open", *branch), "acme/open is public already")
    assert hub.repositories["models", "acme/open"].branches.keys() == {"main"}
    assert hub.files("acme/open") == {}
    # By default an adapter's would be private, which nobody asked for.
    pushed = client.command("push", adapter, "acme/open", "--base_model", base_on_hub)
    assert pushed.wait() == 0, pushed.text
    assert "acme/open is public, so everybody can read" in pushed.text
    assert "acme/open (public)" in pushed.text


def test_transformers_own_pushes(client, base, tmp_path):
    code = """if True:
        import sys
        from fusionmatch.loading import load_pretrained
        model, processor = load_pretrained(sys.argv[1])
        model.push_to_hub("acme/own", private=True)
        processor.push_to_hub("acme/own")
        model.save_pretrained(sys.argv[2], push_to_hub=True, repo_id="acme/saved")
        processor.save_pretrained(sys.argv[2], push_to_hub=True, repo_id="acme/saved")
        from transformers import AutoModel, AutoProcessor
        AutoProcessor.from_pretrained("acme/own")
        assert type(AutoModel.from_pretrained("acme/own")).__name__ == "FusionMatchModel"
    """
    client.run(code, base, tmp_path / "saved")
    for name in ("acme/own", "acme/saved"):
        client.run(EMBED, name, tmp_path / "found", "{}")
        assert same(tmp_path / "found", embeddings(load_pretrained(base)[0]))


def test_code_goes_along_on_request_for_who_has_no_fusionmatch(client, hub, hub_home, base, tmp_path):
    ranking, processor = load_pretrained(base, ranking_stage=True)
    ranking.save_pretrained(tmp_path / "ranking")
    processor.save_pretrained(tmp_path / "ranking")
    for folder, name in ((base, "acme/code"), (tmp_path / "ranking", "acme/ranking")):
        pushed = client.command("push", folder, name, "--include_code", "True")
        assert pushed.wait() == 0, pushed.text
    code = """if True:
        import sys, torch
        from safetensors.torch import load_file, save_file
        from transformers import AutoModel, AutoModelForPreTraining, AutoProcessor, pipeline
        sys.modules["fusionmatch"] = None  # importing it is an ImportError, also where it is installed
        inputs, output, picture = sys.argv[1:]
        trust = {"trust_remote_code": True}
        model = AutoModel.from_pretrained("acme/code", **trust)
        with torch.no_grad():
            outputs = model(**load_file(inputs))
        save_file({name: outputs[name].contiguous() for name in ("image_embeds", "text_embeds")}, output)
        processor = AutoProcessor.from_pretrained("acme/code", **trust)
        ranking = AutoModelForPreTraining.from_pretrained("acme/ranking", **trust)
        classify = pipeline("zero-shot-image-classification", model="acme/code", device="cpu", **trust)
        labels = classify(picture, candidate_labels=["a red mug", "a green bowl"])
        print(type(model).__name__, type(processor).__name__, type(ranking).__name__, len(labels))
    """
    save_file(tiny_inputs(), tmp_path / "inputs")
    tiny_pictures(1)[0].save(tmp_path / "picture.png")
    environment = hub_environment(hub.endpoint, hub_home, PYTHONPATH="")
    paths = [str(tmp_path / name) for name in ("inputs", "found", "picture.png")]
    command = [sys.executable, "-c", code, *paths]
    run = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    expected = ["FusionMatchModel", "FusionMatchProcessor", "FusionMatchForImageTextRetrieval", "2"]
    assert run.stdout.split()[-4:] == expected
    assert same(tmp_path / "found", embeddings(load_pretrained(base)[0]))
    # With FusionMatch the code is not even fetched, and a push without takes it away.
    before = len(hub.log)
    client.run(EMBED, "acme/code", tmp_path / "found", json.dumps({"cache_dir": str(tmp_path / "cache")}))
    assert not hub.requests(r"\.py$", before)
    assert client.command("push", base, "acme/code").wait() == 0
    assert hub.files("acme/code").keys() == CHECKPOINT

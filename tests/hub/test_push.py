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
"""Pushing to a Hub and loading from it by name."""

import json
import re
import shutil
import subprocess
import sys

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file

from fusionmatch.loading import fingerprint, load_pretrained

from ..core.tiny import tiny_model, tiny_processor
from .checks import (
    ADAPTER,
    CHECKPOINT,
    EMBED,
    LEFTOVERS,
    PRIVATE,
    embeddings,
    fails,
    pickles,
    same,
)
from .client import ROOT, hub_environment


pytestmark = pytest.mark.usefixtures("no_token_anywhere")


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

    @pytest.mark.parametrize("kind", ["base", "sharded", "shape"])
    def test_weights_that_the_settings_ask_for_have_to_be_there(self, kind, client, hub, base, sharded, tmp_path):
        folder = shutil.copytree(sharded if kind == "sharded" else base, tmp_path / "base")
        name = "text_head.fc1.weight"
        path = next(path for path in folder.glob("*.safetensors") if name in load_file(path))
        weights = load_file(path)
        weights[name] = weights[name][:1]
        if kind != "shape":
            del weights[name]
        save_file(weights, path, metadata={"format": "pt"})
        fails(client.command("push", folder, "acme/holes"), str(folder), f"`{name}`", "again")
        assert ("models", "acme/holes") not in hub.repositories

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

    def test_nothing_that_arrived_is_a_pickle(self, adapter_on_hub, base_on_hub, hub, tmp_path):
        for name in (adapter_on_hub[0], base_on_hub):
            folder = tmp_path / name
            folder.mkdir(parents=True)
            for path, content in hub.files(name).items():
                (folder / path).write_bytes(content)
            assert pickles(folder) == (0, set())

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
        card = ModelCard.load(tmp_path / "merged" / "README.md")
        assert (card.data.base_model, card.data["base_model_relation"]) == (base_on_hub, "finetune")
        assert card.data.eval_results == ModelCard.load(adapter / "README.md").data.eval_results
        assert f"`{base_on_hub}` with the adapter `{name}`" in card.text
        assert 'load_pretrained(".")' in card.text
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

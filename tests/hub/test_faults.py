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
"""Everything that goes wrong on the way to a Hub and back: it is said in words, and nothing is lost or half there."""

import json
import os
import signal
import threading
from pathlib import Path

import pytest

from fusionmatch.loading import load_pretrained

from ..core.tiny import tiny_model, tiny_processor
from .checks import (
    CHECKPOINT,
    EMBED,
    SENTENCE,
    embeddings,
    fails,
    refuses,
    same,
)
from .loopback_hub import Fault


pytestmark = pytest.mark.usefixtures("no_token_anywhere")


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
        assert hub.files("acme/cut").keys() == {path.name for path in sharded.iterdir()} | SENTENCE

    def test_a_connection_that_is_cut_and_a_busy_hub_are_tried_again(self, client, hub, sharded, since):
        hub.faults.append(Fault("PUT /lfs/models/acme/shaky/", cut_after=1000))
        hub.faults.append(Fault("POST .*/preupload/", 503, {"Retry-After": "0"}))
        assert client.command("push", sharded, "acme/shaky").wait() == 0
        assert hub.files("acme/shaky").keys() == {path.name for path in sharded.iterdir()} | SENTENCE
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

    def test_a_download_that_is_cut_goes_on_in_the_middle_of_the_file(self, client, hub, hub_home, since):
        # huggingface_hub keeps what arrived in pieces of 10 MiB.
        weights = bytes(range(256)) * (25 * 2**12)
        hub.create("acme/large").commit("main", "model", "acme", {"model.safetensors": weights})
        asked, hold = "GET /acme/large/resolve/.*/model.safetensors", threading.Event()
        hub.faults += [Fault(asked, cut_after=15 * 2**20), Fault(asked, hold=hold)]
        code = """if True:
            import sys
            from fusionmatch.repository import WEIGHTS_PATTERNS, fetch
            print(fetch(sys.argv[1], WEIGHTS_PATTERNS))
        """
        call = client.start(code, "acme/large")
        hub.wait_until(lambda: len(hub.requests(asked, since)) == 2)
        # So far it is nowhere where anybody would look for it.
        assert not list((hub_home / "hub" / "models--acme--large").glob("snapshots/*/*"))
        hold.set()
        assert call.wait() == 0, call.text
        assert [request.range for request in hub.requests(asked, since)] == [None, f"bytes={10 * 2**20}-"]
        folder = Path(call.text.strip().splitlines()[-1])
        assert (folder / "model.safetensors").read_bytes() == weights
        assert not list((hub_home / "hub" / "models--acme--large").rglob("*.incomplete"))

    def test_a_commit_that_conflicts_shows_nothing_and_is_whole_when_repeated(
        self, client, hub, base, sharded, tmp_path, since
    ):
        assert client.command("push", sharded, "acme/conflict").wait() == 0
        before = hub.files("acme/conflict")
        hub.faults.append(Fault("POST .*/acme/conflict/commit/", 409))
        call = client.command("push", base, "acme/conflict")
        fails(call, "Somebody else changed acme/conflict", "(409)", "start the same command again")
        repository = hub.repositories["models", "acme/conflict"]
        # The large file has arrived, and is in no commit.
        assert (base / "model.safetensors").read_bytes() in repository.objects.values()
        assert (hub.files("acme/conflict"), len(repository.commits)) == (before, 2)
        client.run(EMBED, "acme/conflict", tmp_path / "found", "{}")
        assert same(tmp_path / "found", embeddings(load_pretrained(sharded)[0]))
        assert client.command("push", base, "acme/conflict").wait() == 0
        after = hub.files("acme/conflict")
        assert after.keys() == CHECKPOINT
        assert all(after[path.name] == path.read_bytes() for path in base.iterdir())

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
        assert hub.files("acme/shared").keys() == {path.name for path in sharded.iterdir()} | SENTENCE

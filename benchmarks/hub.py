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
The way of a base and its adapter over the Hub and back, against a Hub on this machine: pushed (one push killed in the
middle and repeated), loaded by name with FusionMatch and without it, compared; and how long pushing and pulling takes
beside plain huggingface_hub.

    python benchmarks/hub.py --base base --adapter adapter

The adapter is one that was made on that base, such as `fusionmatch adapt` leaves it.
"""

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from safetensors.torch import load_file


sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.hub.client import Client, hub_environment
from tests.hub.loopback_hub import Fault, LoopbackHub


# Each says how long it took, without the time to import.
PLAIN_PUSH = """if True:
    import sys, time
    from huggingface_hub import HfApi
    start, api = time.perf_counter(), HfApi()
    api.create_repo(sys.argv[2], exist_ok=True)
    api.upload_folder(folder_path=sys.argv[1], repo_id=sys.argv[2])
    print(time.perf_counter() - start)
"""
PUSH = """if True:
    import sys, time
    from fusionmatch import push_folder
    start = time.perf_counter()
    push_folder(*sys.argv[1:])
    print(time.perf_counter() - start)
"""
PLAIN_PULL = """if True:
    import sys, time
    from huggingface_hub import snapshot_download
    start = time.perf_counter()
    snapshot_download(sys.argv[1], cache_dir=sys.argv[2])
    print(time.perf_counter() - start)
"""
PULL = """if True:
    import sys, time
    from fusionmatch.repository import SETTINGS_PATTERNS, WEIGHTS_PATTERNS, fetch
    start = time.perf_counter()
    for patterns in (SETTINGS_PATTERNS, WEIGHTS_PATTERNS):
        fetch(sys.argv[1], patterns, cache_dir=sys.argv[2])
    print(time.perf_counter() - start)
"""
EMBED = """if True:
    import sys, torch
    from safetensors.torch import save_file
    name, output, alone = sys.argv[1:]
    if alone == "alone":
        sys.modules["fusionmatch"] = None  # importing it is an ImportError, also where it is installed
        from transformers import AutoModel, AutoProcessor
        model = AutoModel.from_pretrained(name, trust_remote_code=True)
        processor = AutoProcessor.from_pretrained(name, trust_remote_code=True)
    else:
        from fusionmatch.loading import load_pretrained
        model, processor = load_pretrained(name)
    from PIL import Image
    picture = Image.linear_gradient("L").convert("RGB")
    inputs = processor(images=[picture], text=["a striped mug", "a red boot"], padding=True, return_tensors="pt")
    with torch.no_grad():
        found = model.eval()(**inputs)
    save_file({side: found[side].contiguous() for side in ("image_embeds", "text_embeds")}, output)
"""


def embeddings(client: Client, name: str, folder: Path, alone: bool = False) -> dict:
    output = folder / "found.safetensors"
    client.run(EMBED, name, output, "alone" if alone else "")
    return load_file(output)


def difference(one: dict, other: dict) -> float:
    return max((one[side] - other[side]).abs().max().item() for side in one)


def chain(hub: LoopbackHub, client: Client, base: Path, adapter: Path, work: Path) -> None:
    """Pushes base and adapter, the first push killed on the way, and compares what comes back."""
    hold = threading.Event()
    hub.faults.append(Fault("PUT /lfs/models/acme/base/", hold=hold, cut_after=2**20))
    call = client.command("push", base, "acme/base", "--include_code", "True")
    hub.wait_until(lambda: hub.requests("PUT /lfs/models/acme/base/"), 300)
    os.kill(call.pid, signal.SIGKILL)
    call.wait()
    hold.set()
    hub.faults.clear()
    print(f"A push killed in the middle: {len(hub.files('acme/base'))} files to be seen.")
    for words in (
        ("push", base, "acme/base", "--include_code", "True"),
        ("push", adapter, "acme/adapter", "--base_model", "acme/base"),
    ):
        call = client.command(*words)
        if call.wait() != 0:
            raise SystemExit(call.text)
    names = {name: sorted(hub.files(f"acme/{name}")) for name in ("base", "adapter")}
    print(f"Pushed again: {len(names['base'])} files of the base; of the adapter {', '.join(names['adapter'])}.")
    local = {path: embeddings(client, path, work) for path in (base, adapter)}
    for title, name, path, alone in (
        ("base by name", "acme/base", base, False),
        ("base by name, without FusionMatch (trust_remote_code)", "acme/base", base, True),
        ("adapter by name", "acme/adapter", adapter, False),
    ):
        gap = difference(embeddings(client, name, work, alone), local[path])
        print(f"{title}: embeddings differ from those of the folder by at most {gap:.1e}.")
    print(f"For comparison, adapter and base differ by {difference(local[base], local[adapter]):.2f}.")


def clock(environment: dict[str, str], code: str, *arguments: object) -> float:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    run = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return float(run.stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--adapter", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    base, adapter = args.base.resolve(), args.adapter.resolve()
    with LoopbackHub() as hub, tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        environment = hub_environment(hub.endpoint, work / "home", hub.token("alice"))
        (work / "client").mkdir()
        client = Client(environment, work / "client")
        try:
            chain(hub, client, base, adapter, work)
        finally:
            client.close()
        megabytes = sum(path.stat().st_size for path in base.iterdir() if path.is_file()) / 1e6
        print(
            f"\nA checkpoint of {megabytes:.0f} MB, in a process of its own, without the time to import; median of "
            f"{args.repeats}:"
        )
        print("| | FusionMatch, s | huggingface_hub, s | ratio |\n|---|---:|---:|---:|")
        for what, own, plain in (("push", PUSH, PLAIN_PUSH), ("pull", PULL, PLAIN_PULL)):
            times: tuple[list[float], list[float]] = ([], [])
            for repeat in range(args.repeats):
                for side, code in enumerate((own, plain)):
                    if what == "push":
                        arguments = (base, f"alice/{what}-{side}-{repeat}")
                    else:
                        arguments = ("acme/base", work / f"cache-{side}-{repeat}")
                    times[side].append(clock(environment, code, *arguments))
            one, other = map(statistics.median, times)
            print(f"| {what} | {one:.2f} | {other:.2f} | {one / other:.2f} |")


if __name__ == "__main__":
    main()

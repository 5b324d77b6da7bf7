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
The way of a base and of an adapter over the Hub and back, against a Hub on this machine: the base pushed (killed in
the middle and repeated), a training on a catalogue that pushes its adapter (killed in the middle of that, and pushed
again), both loaded by name with FusionMatch and without it, the adapter changed on a base that is loaded, all
compared; and how long pushing and pulling takes beside plain huggingface_hub.

    python benchmarks/hub.py --base base --catalogue products.csv

With `--fresh` what loads without FusionMatch is an environment of its own, made for it, that never had FusionMatch.
Further options go to `fusionmatch adapt` as they are.
"""

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import venv
from pathlib import Path

from safetensors.torch import load_file


sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.hub.client import ROOT, Client, hub_environment
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
    name, output, how = sys.argv[1:]
    if how in ("alone", "fresh"):
        if how == "alone":
            sys.modules["fusionmatch"] = None  # importing it is an ImportError, also where it is installed
        try:
            import fusionmatch
        except ImportError:
            pass
        else:
            raise SystemExit("fusionmatch can be imported")
        from transformers import AutoModel, AutoProcessor
        model = AutoModel.from_pretrained(name, trust_remote_code=True)
        processor = AutoProcessor.from_pretrained(name, trust_remote_code=True)
    else:
        from fusionmatch.loading import load_pretrained
        model, processor = load_pretrained(how or name)
        if how:
            model.load_adapter(name, adapter_name="first")
            model.set_adapter("first")
    from PIL import Image
    picture = Image.linear_gradient("L").convert("RGB")
    inputs = processor(images=[picture], text=["a striped mug", "a red boot"], padding=True, return_tensors="pt")
    with torch.no_grad():
        found = model.eval()(**inputs)
    save_file({side: found[side].contiguous() for side in ("image_embeds", "text_embeds")}, output)
"""


def embeddings(client: Client, name: str | Path, folder: Path, how: str = "") -> dict:
    output = folder / "found.safetensors"
    client.run(EMBED, name, output, how)
    return load_file(output)


def fresh_python(work: Path) -> Path:
    """The Python of an environment that holds, in the tested versions, what remote code needs, and no FusionMatch."""
    folder = work / "fresh"
    venv.create(folder, with_pip=True)
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    needed = ("torch", "transformers", "safetensors", "pillow")
    subprocess.run([python, "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt", *needed], check=True)
    return python


def embeddings_fresh(python: Path, environment: dict[str, str], name: str, folder: Path) -> dict:
    output = folder / "found.safetensors"
    # The path of the checkout would bring FusionMatch back.
    environment = {key: value for key, value in environment.items() if key != "PYTHONPATH"}
    subprocess.run([python, "-c", EMBED, name, output, "fresh"], env=environment, cwd=folder, check=True)
    return load_file(output)


def difference(one: dict, other: dict) -> float:
    return max((one[side] - other[side]).abs().max().item() for side in one)


def killed_then_pushed(hub: LoopbackHub, client: Client, name: str, first: list[object], again: list[object]) -> None:
    """A command that pushes is killed while it sends the weights; what can be seen then, and after pushing again."""
    hold, weights = threading.Event(), f"PUT /lfs/models/{name}/"
    hub.faults.append(Fault(weights, hold=hold, cut_after=2**18))
    call = client.command(*first)
    hub.wait_until(lambda: hub.requests(weights), 3600)
    os.kill(call.pid, signal.SIGKILL)
    call.wait()
    hold.set()
    hub.faults.clear()
    seen = [file for file in hub.files(name) if file != ".gitattributes"]
    call = client.command(*again)
    if call.wait() != 0:
        raise SystemExit(call.text)
    files = sorted(hub.files(name))
    shown = "files" if len(files) > 10 else f"files: {', '.join(files)}"
    print(
        f"{name}: `{first[0]}` killed in the middle of its push shows {len(seen)} files; `push`, {len(files)} {shown}."
    )


def chain(
    hub: LoopbackHub,
    client: Client,
    base: Path,
    catalogue: Path,
    options: list[str],
    work: Path,
    fresh: dict[str, str] | None,
) -> None:
    """
    Pushes a base, trains and pushes an adapter, and compares what comes back; with the environment of `fresh` also by
    a Python that never had FusionMatch.
    """
    push = ["push", base, "acme/base", "--include_code", "True"]
    killed_then_pushed(hub, client, "acme/base", push, push)
    adapter = work / "adapter"
    train = ["adapt", "--model_name_or_path", "acme/base", "--catalogue", catalogue, "--output_dir", adapter]
    train += ["--push_to_hub", "True", "--hub_model_id", "acme/adapter", "--hub_strategy", "end", *options]
    killed_then_pushed(hub, client, "acme/adapter", train, ["push", adapter, "acme/adapter"])
    local = {path: embeddings(client, path, work) for path in (base, adapter)}
    for title, name, path, how in (
        ("base by name", "acme/base", base, ""),
        ("base by name, without FusionMatch (trust_remote_code)", "acme/base", base, "alone"),
        ("adapter by name", "acme/adapter", adapter, ""),
        ("adapter by name on the base that is loaded", "acme/adapter", adapter, "acme/base"),
    ):
        gap = difference(embeddings(client, name, work, how), local[path])
        print(f"{title}: embeddings differ from those of the folder by at most {gap:.1e}.")
    if fresh is not None:
        python = fresh_python(work)
        gap = difference(embeddings_fresh(python, fresh, "acme/base", work), local[base])
        command = [python, "-m", "pip", "list", "--format", "freeze"]
        held = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
        print(
            f"base by name in a fresh environment of {len(held)} packages without FusionMatch: embeddings differ from "
            f"those of the folder by at most {gap:.1e}."
        )
    print(f"For comparison, adapter and base differ by {difference(local[base], local[adapter]):.2f}.")


def clock(environment: dict[str, str], code: str, *arguments: object) -> float:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    run = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return float(run.stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--catalogue", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--fresh", action="store_true")
    args, options = parser.parse_known_args()
    base = args.base.resolve()
    with LoopbackHub() as hub, tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        environment = hub_environment(hub.endpoint, work / "home", hub.token("alice"))
        (work / "client").mkdir()
        client = Client(environment, work / "client")
        try:
            fresh = environment if args.fresh else None
            chain(hub, client, base, args.catalogue.resolve(), options, work, fresh)
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

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
Images/s and texts/s of embedding, pixels of photographs beside the image processor's time, milliseconds to change
adapters, peak memory. Training: `training_speed.py`.

    python benchmarks/speed.py                                 (starter base and sample shop, made on the spot)
    python benchmarks/speed.py --base base --catalogue products.csv

Each row runs in a process of its own, so that its peak memory is its own. Figures are medians over the repeats; on a
shared machine only the ratios between rows of one run say something.
"""

import argparse
import io
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image


# Pictures of the catalogue, saved as photographs of a shop and of a camera are.
JPEGS = {"JPEG of 640x480 to pixels": (640, 480), "JPEG of 2000x1500 to pixels": (2000, 1500)}
ROWS = {
    "embed pictures": "images/s",
    "embed texts": "texts/s",
    **dict.fromkeys(JPEGS, "x faster"),
    "change to an adapter that is loaded": "ms",
    "load an adapter and change to it": "ms",
    "the same by PEFT, which looks at no base": "ms",
    "put an adapter in another's place": "ms",
}


def measure(row: str, base: str, catalogue: str, repeats: int) -> list[float]:
    """
    Units per second of each repeat, after one to warm up; milliseconds for adapters; for pixels how many times as long
    the image processor takes.
    """
    from fusionmatch import load_catalogue
    from fusionmatch.evaluation.retrieval import embed_images, embed_texts
    from fusionmatch.loading import load_pretrained

    if ROWS[row] == "ms":
        return measure_adapters(row, base, repeats)
    model, processor = load_pretrained(base)
    dataset = load_catalogue(catalogue)["train"]
    if row in JPEGS:
        return measure_pixels(JPEGS[row], processor, dataset[:16]["image"], repeats)
    texts = [text for texts in dataset["texts"] for text in texts]
    speeds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        if row == "embed pictures":
            embed_images(model, processor, dataset["image"], disable_tqdm=True)
        else:
            embed_texts(model, processor, texts, disable_tqdm=True)
        speeds.append((len(dataset) if row == "embed pictures" else len(texts)) / (time.perf_counter() - start))
    return speeds[1:]


def measure_pixels(size: tuple[int, int], processor: Any, pictures: list[Image.Image], repeats: int) -> list[float]:
    """
    The image processor's CPU time from a batch of files to its pixels over ours, decoding among both; on one thread,
    as a worker of a data loader has.
    """
    from fusionmatch.evaluation.inputs import image_inputs

    torch.set_num_threads(1)
    files = [io.BytesIO() for _ in pictures]
    for file, picture in zip(files, pictures, strict=True):
        picture.convert("RGB").resize(size, Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    ratios = []
    for _ in range(repeats + 1):
        starts = [time.process_time()]
        processor.image_processor(images=[Image.open(file) for file in files], return_tensors="pt")
        starts.append(time.process_time())
        image_inputs(processor, [Image.open(file) for file in files])
        starts.append(time.process_time())
        ratios.append((starts[1] - starts[0]) / (starts[2] - starts[1]))
    return ratios[1:]


def measure_adapters(row: str, base: str, repeats: int) -> list[float]:
    """Milliseconds from one customer's adapter (LoRA in both towers) to another's."""
    from peft import get_peft_model

    from fusionmatch.loading import fingerprint, load_pretrained, precision, write_fingerprint
    from fusionmatch.training import lora_config

    times = []
    with tempfile.TemporaryDirectory() as folder:
        adapter, model = f"{folder}/one", load_pretrained(base)[0]
        made_on = str(base), fingerprint(model), precision(model)
        peft_model = get_peft_model(model, lora_config(model), adapter_name="one")
        peft_model.save_pretrained(folder)
        write_fingerprint(adapter, *made_on)
        if "PEFT" not in row:
            model = load_pretrained(base)[0]
            for name in ("one", "two"):
                model.load_adapter(adapter, adapter_name=name)
        for i in range(2 * repeats + 2):
            start = time.perf_counter()
            if row.startswith("change"):
                model.set_adapter(("two", "one")[i % 2])
            elif row.startswith("put"):
                model.load_adapter(adapter, adapter_name="one", hotswap=True)
            else:
                on = peft_model if "PEFT" in row else model
                on.load_adapter(adapter, adapter_name=f"customer-{i}")
                on.set_adapter(f"customer-{i}")
            times.append(1000 * (time.perf_counter() - start))
    return times[2:]


@contextmanager
def base_and_catalogue(base: str | None, catalogue: str | None) -> Iterator[tuple[str, str]]:
    """The named ones; without, the starter base and the sample shop, made for the while."""
    with tempfile.TemporaryDirectory() as folder:
        if base is None:
            from fusionmatch.starter import build_starter

            base = str(build_starter(Path(folder) / "base"))
        if catalogue is None:
            from fusionmatch.catalogue.sample_shop import write_sample_shop

            catalogue = str(write_sample_shop(Path(folder) / "shop"))
        yield base, catalogue


def run_row(script: str, row: str, *options: str) -> dict[str, Any]:
    """What a row of a benchmark prints as JSON, measured in a process of its own."""
    command = [sys.executable, script, "--row", row, *options]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode != 0:
        raise SystemExit(f"{row} failed:\n{run.stderr[-3000:]}")
    return json.loads(run.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", help="checkpoint; without, the starter base")
    parser.add_argument("--catalogue", help="catalogue; without, the sample shop")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--row", choices=list(ROWS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.row:
        speeds = measure(args.row, args.base, args.catalogue, args.repeats)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(json.dumps({"speeds": speeds, "peak_gb": peak}))
        return

    with base_and_catalogue(args.base, args.catalogue) as (base, catalogue):
        print(f"| {'what':<42} | {'median':>8} | {'unit':<8} | {'lowest':>8} | {'highest':>8} | peak GB |")
        print(f"|{'-' * 44}|{'-' * 9}:|{'-' * 10}|{'-' * 9}:|{'-' * 9}:|{'-' * 8}:|")
        for row, unit in ROWS.items():
            options = ("--base", base, "--catalogue", catalogue, "--repeats", str(args.repeats))
            found = run_row(__file__, row, *options)
            speeds = found["speeds"]
            print(
                f"| {row:<42} | {statistics.median(speeds):>8.1f} | {unit:<8} | {min(speeds):>8.1f} | "
                f"{max(speeds):>8.1f} | {found['peak_gb']:>7.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()

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
Rows/s and peak memory of reading a catalogue (`read_catalogue`) and of looking through it (`examine`).

    python benchmarks/intake.py                                     (drawn on the spot; needs some 700 MB of disk)
    python benchmarks/intake.py --tables 10000 100000 --format jsonl

The first row is as a shop has it: every row has a picture of its own, a photo-like JPEG of 640 x 480, and most of the
time goes into decoding. In the others many rows name the same 2,000 small pictures, each of which is decoded once, so
that what is measured is the table: two rows a product, a title, a description and a price, each row worth a look since
others show its picture. Each row of the benchmark runs in a process of its own, so that its peak memory is its own: of
what the process holds itself (Linux); files that are mapped into memory give way when others need the place. Where
others use the machine as well, CPU seconds say more than those on the clock.
"""

import argparse
import csv
import json
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
from PIL import Image
from speed import run_row


FEW = 2_000


def write_pictures(folder: Path, number: int, size: tuple[int, int]) -> None:
    """Pictures that differ: coarse noise, enlarged, with some fine noise on top, as photos have it."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    grain = generator.integers(-12, 12, (size[1], size[0], 3), dtype=np.int16)
    for i in range(number):
        coarse = Image.fromarray(generator.integers(0, 255, (6, 8, 3), dtype=np.uint8)).resize(size, Image.BICUBIC)
        pixels = np.clip(np.asarray(coarse, np.int16) + grain, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:06}.jpg", quality=85)


def write_catalogue(folder: Path, rows: int, pictures: int, format: str) -> Path:
    """Rows that name the pictures in turn."""
    path = folder / f"products.{format}"
    words = ["red", "warm", "hat", "lamp", "wool", "steel", "large", "for", "home", "garden", "soft", "dark", "chair"]
    generator = np.random.default_rng(1)
    names = ["sku", "product_id", "title", "description", "price", "image"]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        if format == "csv":
            writer.writerow(names)
        for row, drawn in enumerate(generator.integers(0, len(words), (rows, 16))):
            said = [words[number] for number in drawn]
            cells = [f"S{row:07}", f"P{row // 2:07}", " ".join(said[:4]) + f" {row}", " ".join(said), row % 90 + 0.5]
            cells.append(f"pictures/{row % pictures:06}.jpg")
            if format == "csv":
                writer.writerow(cells)
            else:
                file.write(json.dumps(dict(zip(names, cells, strict=True))) + "\n")
    return path


def measure(catalogue: str) -> dict[str, float]:
    """Seconds and memory of the two steps."""
    import datasets

    from fusionmatch.catalogue import examine, read_catalogue

    datasets.disable_progress_bars()
    before, start, cpu = own_gb(), time.perf_counter(), time.process_time()
    peaks = [before]
    threading.Thread(target=watch, args=[peaks], daemon=True).start()
    intake = read_catalogue(catalogue)
    read, peak_read = time.perf_counter(), max(peaks)
    findings = examine(intake)
    return {
        "before": before,
        "read_s": read - start,
        "examine_s": time.perf_counter() - read,
        "cpu_s": time.process_time() - cpu,
        "peak_read": peak_read,
        "peak": max(peaks),
        "pictures": len(intake.dataset),
        "findings": len(findings),
    }


def watch(peaks: list[float]) -> None:
    """Measures the memory a hundred times a second."""
    while True:
        peaks.append(own_gb())
        time.sleep(0.01)


def own_gb() -> float:
    """Memory of the process without the files that are mapped into it."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=10_000, help="rows with pictures of their own; or 0")
    parser.add_argument("--tables", type=int, nargs="*", default=[10_000, 100_000, 1_000_000], help="rows of tables")
    parser.add_argument("--format", choices=["csv", "jsonl"], default="csv")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.row:
        print(json.dumps(measure(args.row)))
        return
    heads = ["rows", "picture files", "read, s", "examine, s", "CPU, s", "rows/s"]
    heads += ["before, GB", "reading, GB", "peak, GB", "KB a row"]
    print(f"| {' | '.join(heads)} |\n|{'---:|' * len(heads)}")
    for rows, pictures, size in [
        *([(args.photos, args.photos, (640, 480))] if args.photos else []),
        *((rows, min(FEW, rows), (64, 48)) for rows in args.tables),
    ]:
        with tempfile.TemporaryDirectory() as folder:
            write_pictures(Path(folder) / "pictures", pictures, size)
            path = write_catalogue(Path(folder), rows, pictures, args.format)
            found = run_row(__file__, str(path))
        seconds = found["read_s"] + found["examine_s"]
        each = (found["peak"] - found["before"]) * 2**20 / rows
        cells = [f"{rows:,}", f"{pictures:,} of {size[0]} x {size[1]}", f"{found['read_s']:.1f}"]
        cells += [f"{found['examine_s']:.1f}", f"{found['cpu_s']:.1f}", f"{rows / seconds:,.0f}"]
        cells += [f"{found[name]:.2f}" for name in ("before", "peak_read", "peak")] + [f"{each:.1f}"]
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()

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
How many copies of a catalogue's pictures are found after they were saved again, and how many pictures of other
products are taken for copies.

    python benchmarks/duplicates.py --catalogue products.csv
    python benchmarks/duplicates.py --recoloured 1000 5000 20000 100000

The last line of the first names pairs of different products: look at them, they may be copies indeed. The second
groups made-up hashes: templates in as many colours, whose hashes differ in at most six bits, with noise.
"""

import argparse
import io
import time

import numpy as np
from PIL import Image

from fusionmatch.catalogue import read_catalogue
from fusionmatch.catalogue.duplicates import group_pictures, picture_hash


# Format, quality, and side of the copy as a share of the original's.
WAYS = (("JPEG", 90, 1.0), ("JPEG", 70, 1.0), ("JPEG", 85, 0.6), ("WEBP", 80, 0.8), ("PNG", None, 0.5))


def saved_again(picture: Image.Image, kind: str, quality: int | None, share: float) -> Image.Image:
    """A copy of a picture in another format, quality and size."""
    buffer = io.BytesIO()
    size = tuple(max(1, round(side * share)) for side in picture.size)
    picture.convert("RGB").resize(size).save(buffer, kind, quality=quality)
    return Image.open(buffer)


def recolour(number: int, templates: int) -> list[bytes]:
    """Hashes of templates in turn, some cells of each in a colour of the row's own."""
    generator = np.random.default_rng(0)
    row = np.arange(number) % templates
    bits = generator.integers(0, 2, (templates, 256), dtype=np.uint8)[row]
    bits[np.arange(number)[:, None], generator.integers(0, 256, (number, 3))] ^= 1
    cells = generator.integers(200, 254, (templates, 64, 3), dtype=np.uint8)[row]
    coloured = generator.random((templates, 64, 1))[row] < 2 / 3
    np.copyto(cells, generator.integers(2, 253, (number, 1, 3), dtype=np.uint8), where=coloured)
    cells += generator.integers(-2, 3, cells.shape, dtype=np.int8).view(np.uint8)
    return [one.tobytes() for one in np.concatenate([np.packbits(bits, axis=1), cells.reshape(number, -1)], axis=1)]


def time_recoloured(numbers: list[int]) -> None:
    """Rows of a table."""
    print("| pictures | templates | groups | s | CPU s |\n|---:|---:|---:|---:|---:|")
    for number in numbers:
        for templates in (1, 10):
            hashes = recolour(number, templates)
            start, cpu = time.perf_counter(), time.process_time()
            groups = len(set(group_pictures(hashes)))
            took, worked = time.perf_counter() - start, time.process_time() - cpu
            print(f"| {number:,} | {templates} | {groups:,} | {took:.2f} | {worked:.2f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--catalogue")
    what.add_argument(
        "--recoloured", type=int, nargs="+", metavar="PICTURES", help="one template in so many colours, and ten"
    )
    parser.add_argument("--max_samples", type=int, help="rows to read")
    args = parser.parse_args()
    if args.recoloured:
        time_recoloured(args.recoloured)
        return
    dataset = read_catalogue(args.catalogue, max_samples=args.max_samples).dataset
    start = time.perf_counter()
    hashes = [picture_hash(picture) for picture in dataset["image"]]
    hashed = time.perf_counter()
    group_pictures(hashes)
    print(
        f"{len(dataset):,} pictures: {1000 * (hashed - start) / len(dataset):.1f} ms each to decode and hash, "
        f"{time.perf_counter() - hashed:.2f} s to group\n\n| saved again as | found | of |\n|---|---:|---:|"
    )
    for kind, quality, share in WAYS:
        copies = [picture_hash(saved_again(picture, kind, quality, share)) for picture in dataset["image"]]
        groups = group_pictures([*hashes, *copies])
        found = sum(groups[i] == groups[len(hashes) + i] for i in range(len(hashes)))
        what = (
            kind + (f" of quality {quality}" if quality else "") + (f", {share:g} times as large" if share < 1 else "")
        )
        print(f"| {what} | {found} | {len(hashes)} |", flush=True)
    first: dict[str, tuple[str, str]] = {}
    other = []
    for name, product, group in zip(dataset["image_id"], dataset["product"], dataset["picture_group"], strict=True):
        seen, owner = first.setdefault(group, (name, product))
        if owner != product:
            other.append((seen, name))
    print(f"\nOf other products: {len(other)}{'' if not other else f', such as {other[:5]}'}")


if __name__ == "__main__":
    main()

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
Reads thousands of broken catalogues: none may end in a traceback, take too long, or lead out of its folder.

    python -m benchmarks.fuzz_intake                                        (2,000 catalogues)
    python -m benchmarks.fuzz_intake --cases 200 --start 7                  (others)

The cases are those of `tests/catalogue/broken_files.py`. They are read in a process of their own, which is stopped
when one takes longer than `--limit`, and gets no more memory than `--memory_gb`. Reads outside are told by Python's
audit events: whatever is opened by Python that lies neither in the catalogue's folder, nor in the cache, nor in Python
itself, and every program that is started; what Arrow and calamine open raises no event. Exits with 1 if anything was
found.
"""

import argparse
import json
import multiprocessing
import os
import resource
import sys
import tempfile
import time
import traceback
from collections import Counter, defaultdict
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tests.catalogue.broken_files import cases
from tests.catalogue.broken_pictures import Case, write_secret


TRACEBACK, HANG, OUTSIDE = "TRACEBACK", "HANG", "OUTSIDE"
FAULTS = (TRACEBACK, HANG, OUTSIDE)
# What the catalogue raises in its own words; a subclass such as UnicodeDecodeError speaks in Python's.
WORDED = (ValueError, FileNotFoundError, ImportError)


class Watch:
    """Keeps what was opened and started since the last look."""

    def __init__(self) -> None:
        self.opened: list[Any] = []
        sys.addaudithook(self._hear)

    def _hear(self, event: str, args: tuple[Any, ...]) -> None:
        if event in ("open", "subprocess.Popen", "os.exec", "os.posix_spawn", "os.system", "socket.connect"):
            self.opened.append((event, args[1] if event == "socket.connect" else args[0]))

    def outside(self, allowed: list[Path]) -> list[str]:
        """What lies in none of the folders."""
        opened, self.opened = self.opened, []
        found = []
        for event, what in opened:
            if event != "open":
                found.append(f"{event} {what}")
            elif not isinstance(what, int):
                path = Path(os.path.realpath(os.fsdecode(what)))
                if not any(path.is_relative_to(folder) for folder in allowed):
                    found.append(str(path))
        return found


def read(case: Case, folder: Path, watch: Watch, allowed: list[Path], connection: Connection) -> dict[str, Any]:
    """Writes a case and reads it; says when the reading begins."""
    from fusionmatch.catalogue import examine, read_catalogue
    from fusionmatch.catalogue.languages import languages_of

    languages_of(["What is known of languages unpacks into a temporary file, once."])
    shop = folder / "shop"
    shop.mkdir()
    path = case.write(shop)
    peak_gb(reset=True)
    watch.opened.clear()
    connection.send({"kind": case.kind, "name": case.name})
    start = time.perf_counter()
    detail = ""
    try:
        intake = read_catalogue(str(path))
        examine(intake)
        outcome = "quarantined" if intake.quarantine else "read"
        pictures = [Path(row["path"]) for row in intake.dataset.data["image"].to_pylist() if row and row["path"]]
        strayed = [str(file) for file in pictures if file.is_absolute() and not file.is_relative_to(shop.resolve())]
    except BaseException as error:  # noqa: BLE001 - this is what is looked for
        worded = type(error) in WORDED
        outcome, strayed = f"{'' if worded else TRACEBACK + ' '}{type(error).__name__}", []
        detail = str(error) if worded else traceback.format_exc()[-1500:]
    seconds = time.perf_counter() - start
    strayed += watch.outside([shop.resolve(), *allowed])
    if strayed:
        outcome, detail = OUTSIDE, ", ".join(strayed[:5])
    return {"outcome": outcome, "detail": detail, "seconds": seconds, "peak_gb": peak_gb()}


def peak_gb(reset: bool = False) -> float:
    """Largest resident memory since the last reset (Linux)."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 2**20


def work(connection: Connection, number: int, start: int, memory_gb: float) -> None:
    """Reads the cases whose numbers come in, until none comes."""
    with tempfile.TemporaryDirectory() as home:
        # Long tables are kept where `datasets` keeps temporary files.
        os.environ |= {"HF_HOME": home, "HF_DATASETS_CACHE": f"{home}/datasets", "TMPDIR": home}
        # Ours says where it is wrong in its own words; none of the libraries' bars and warnings is wanted here.
        os.environ |= {"HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
        sys.stdin.close()
        resource.setrlimit(resource.RLIMIT_AS, (int(memory_gb * 2**30), resource.RLIM_INFINITY))
        found, watch = cases(number, start), Watch()
        code = [Path(place).resolve() for place in {sys.prefix, sys.base_prefix, *sys.path} if Path(place).is_dir()]
        # What libraries look up: the machine when they load, time zones of columns.
        known = ("/proc/self", f"/proc/{os.getpid()}", "/sys", "/dev/null", "/usr/share/zoneinfo")
        allowed = [Path(home).resolve(), *code, *map(Path, known)]
        while (index := connection.recv()) is not None:
            with tempfile.TemporaryDirectory() as folder:
                write_secret(Path(folder))
                connection.send(read(found[index], Path(folder), watch, allowed, connection))
                locked = Path(folder) / "shop/locked"
                if locked.exists():
                    locked.chmod(0o700)


class Reader:
    """The other process, started anew when it has to be stopped."""

    def __init__(self, *args: Any) -> None:
        self.args = args
        self.process: multiprocessing.Process | None = None

    def __call__(self, index: int, limit: float) -> dict[str, Any]:
        """What reading this case gave."""
        case = {"kind": "none", "name": str(index)}
        if self.process is None:
            context = multiprocessing.get_context("spawn")
            self.connection, other = context.Pipe()
            self.process = context.Process(target=work, args=(other, *self.args), daemon=True)
            self.process.start()
            other.close()
        try:
            self.connection.send(index)
            case = self.connection.recv()
            if self.connection.poll(limit):
                return case | self.connection.recv()
        except EOFError:
            self.process.join()
            code, self.process = self.process.exitcode, None
            return case | {"outcome": f"{TRACEBACK} exit {code}", "detail": "", "seconds": 0.0, "peak_gb": 0.0}
        self.stop(at_once=True)
        return case | {"outcome": HANG, "detail": "", "seconds": limit, "peak_gb": 0.0}

    def stop(self, at_once: bool = False) -> None:
        """Ends the process, after what it does or whatever it does."""
        if self.process is not None:
            if at_once:
                self.process.kill()
            else:
                self.connection.send(None)
            self.process.join()
            self.process = None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=2_000)
    parser.add_argument("--start", type=int, default=0, help="another start makes other cases")
    parser.add_argument("--limit", type=float, default=10.0, help="seconds a catalogue may take")
    parser.add_argument("--memory_gb", type=float, default=8.0, help="address space of the reading process")
    parser.add_argument("--only", type=int, help="number of the one case to read; its outcome is printed whole")
    args = parser.parse_args()
    reader = Reader(args.cases, args.start, args.memory_gb)
    if args.only is not None:
        print(json.dumps(reader(args.only, args.limit), indent=1).replace("\\n", "\n"))
        reader.stop()
        return 0
    results: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for index in range(args.cases):
        result = reader(index, args.limit)
        results[result["kind"]].append(result)
        if result["outcome"].startswith(FAULTS):
            print(f"case {index} ({result['kind']}, {result['name']}): {result['outcome']}\n{result['detail']}\n")
    reader.stop()
    print(f"| {'kind':<34} | number | slowest, s | peak GB | outcomes\n|---|---:|---:|---:|---|")
    faults = 0
    for kind, each in results.items():
        outcomes = Counter(result["outcome"] for result in each)
        faults += sum(count for outcome, count in outcomes.items() if outcome.startswith(FAULTS))
        said = ", ".join(f"{count} {outcome}" for outcome, count in outcomes.most_common())
        slowest, peak = (max(result[what] for result in each) for what in ("seconds", "peak_gb"))
        print(f"| {kind:<34} | {len(each):>6,} | {slowest:>10.2f} | {peak:>7.2f} | {said} |")
    print(f"{args.cases:,} broken catalogues: {faults:,} with a traceback, a hang or a read outside.")
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())

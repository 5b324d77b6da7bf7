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

"""The `fusionmatch` command line."""

import ctypes
import importlib
import logging
import os
import sys
import textwrap
import warnings

import yaml


# Sub-command -> (module, what it does). Modules are imported when their command is asked for.
COMMANDS = {
    "check": ("check", "what is wrong with a catalogue, before anything is trained on it"),
    "listings": ("listings", "pictures and texts that may not belong together, worst first, as a page"),
    "adapt": ("adapt", "LoRA-adapt a base to a catalogue; before/after report and adapter"),
    "adapter": ("adapter", "list adapters, merge one into its base, compare what they reached"),
    "train": ("train", "train heads, fusion (and towers) into a new base checkpoint"),
    "evaluate": ("evaluate", "retrieval metrics of a checkpoint or adapter on a catalogue"),
    "calibrate": ("calibrate", "similarities into probabilities, and when to say that nothing is carried"),
    "search": ("search", "find products by text or by picture"),
    "report": ("report", "the page a decision is made on: one or several runs, a plan for the rollout"),
    "demo": ("demo", "a page to try the search on, by text and by picture; a folder for a Space"),
    "explain": ("explain", "draw which levels, heads, words and concepts decided"),
    "learning-curve": ("learning_curve", "how many labelled pairs an adaptation needs"),
    "forgetting": ("forgetting", "what an adaptation cost in general retrieval, and how much of it to use"),
    "push": ("push", "send a checkpoint or adapter to the Hub, without what is private"),
    "concepts": ("concepts", "find the words that describe a catalogue; give them to a base"),
    "starter": ("starter", "build a small base checkpoint without the Hub"),
    "sample-shop": ("sample_shop", "write a small drawn catalogue to try things on"),
    "env": ("env", "versions and machine, for bug reports"),
}

# What a user can cause and mend: shown as one worded line. Everything else is a bug and keeps its traceback.
USER_ERRORS = (ValueError, OSError, ImportError, FloatingPointError, yaml.YAMLError)


def usage() -> str:
    """The overview of all sub-commands."""
    rows = "\n".join(f"  {name:<15} {what}" for name, (_, what) in COMMANDS.items())
    return (
        textwrap.dedent("""\
        usage: fusionmatch COMMAND [options]        (fusionmatch COMMAND --help for its options)

        Image-text matching for catalogues.

        commands:
        """)
        + rows
    )


def main(argv: list[str] | None = None) -> int:
    """Entry point of the console script; returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return 0
    if argv[0] in ("-V", "--version"):
        from .. import __version__

        print(f"fusionmatch {__version__}")
        return 0
    name, *rest = argv
    if name not in COMMANDS:
        print(f"fusionmatch: no command {name!r}.\n\n{usage()}", file=sys.stderr)
        return 2
    logging.basicConfig(format="%(message)s")
    keep_freed_memory()
    # Says at every start on some CPUs that a kernel for 4 bits is not there, whether or not one is wanted.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    # Deprecations between our dependencies are theirs to mend; whoever runs a command can do nothing about them.
    warnings.filterwarnings("ignore", category=FutureWarning)
    try:
        return importlib.import_module(f".{COMMANDS[name][0]}", __name__).run(rest) or 0
    except USER_ERRORS as error:
        print(f"fusionmatch {name}: {one_line(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"fusionmatch {name}: interrupted; what was written before is intact.", file=sys.stderr)
        return 130


def keep_freed_memory() -> None:
    """
    Has glibc keep up to 1 GiB that is freed in place of giving every large block back to the system. The tensors of a
    batch are such blocks, and getting their pages anew for each took up to 45 % of the time on a CPU. Whoever sets one
    of glibc's variables (`MALLOC_TRIM_THRESHOLD_`, ...) has it their way; other C libraries are left alone.
    """
    own = any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" and not own else None
    if mallopt is not None:
        for option in (-1, -3):  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of malloc.h
            mallopt(option, 2**30)


def one_line(error: BaseException) -> str:
    """An error's message on one line; the strict configuration's wrapping is taken off."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if len(lines) > 1 and lines[0].startswith(("Class validation error", "Validation error")):
        lines = [line.split(": ", 1)[-1] for line in lines[1:]]
    return " ".join(lines) or type(error).__name__


if __name__ == "__main__":
    sys.exit(main())

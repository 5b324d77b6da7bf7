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
A process that asks the loopback Hub: it imports everything once, with the environment that it was started with, and
forks for each call. What a call runs has nothing of the calls before, and not the seconds that the imports take.
"""

import json
import os
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any


ROOT = Path(__file__).parents[2]
OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")


def hub_environment(endpoint: str, home: Path, token: str | None = None, **more: str) -> dict[str, str]:
    """The environment of a process that takes the loopback Hub for the Hub."""
    environment = {name: value for name, value in os.environ.items() if name not in (*OFFLINE, "HF_TOKEN")}
    environment |= {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }
    return environment | ({} if token is None else {"HF_TOKEN": token}) | more


class Call:
    """One forked call: its `pid`, and what it wrote once it has ended."""

    def __init__(self, client: "Client", pid: int, output: Path) -> None:
        self.client, self.pid, self.output = client, pid, output

    def wait(self) -> int:
        """Waits for the end; the exit code, negative for a signal."""
        return self.client.ask({"wait": self.pid})

    @property
    def text(self) -> str:
        return self.output.read_text(encoding="utf-8")


class Client:
    """The process that forks."""

    def __init__(self, environment: dict[str, str], folder: Path) -> None:
        self.folder, self.count = folder, 0
        command = [sys.executable, "-m", "tests.hub.client"]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment
        )

    def ask(self, what: dict[str, Any]) -> Any:
        self.process.stdin.write(json.dumps(what) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def start(self, code: str, *arguments: object, **environment: str) -> Call:
        """Starts Python code, with `arguments` as `sys.argv[1:]` and more in its environment."""
        self.count += 1
        output = self.folder / f"output-{self.count}.txt"
        argv = ["-c", *map(str, arguments)]
        pid = self.ask({"code": code, "argv": argv, "environment": environment, "output": str(output)})
        return Call(self, pid, output)

    def run(self, code: str, *arguments: object, **environment: str) -> str:
        """What the code wrote; it has to end well."""
        call = self.start(code, *arguments, **environment)
        status = call.wait()
        assert status == 0, call.text[-3000:]
        return call.text

    def command(self, *arguments: object, **environment: str) -> Call:
        """Starts the `fusionmatch` command."""
        code = "import sys; from fusionmatch.commands import main; sys.exit(main(sys.argv[1:]))"
        return self.start(code, *arguments, **environment)

    @property
    def texts(self) -> list[str]:
        """What all calls wrote."""
        return [path.read_text(encoding="utf-8") for path in self.folder.iterdir()]

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(30)
        self.process.stdout.close()


def _serve() -> None:
    import transformers.trainer  # noqa: F401

    import fusionmatch.commands.adapt
    import fusionmatch.commands.push
    import fusionmatch.commands.search  # noqa: F401

    for line in sys.stdin:
        asked = json.loads(line)
        if "wait" in asked:
            answer = os.waitstatus_to_exitcode(os.waitpid(asked["wait"], 0)[1])
        else:
            answer = os.fork()
            if answer == 0:
                _call(asked)
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def _call(asked: dict[str, Any]) -> None:
    status = 1
    try:
        with Path(asked["output"]).open("w", encoding="utf-8") as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
        os.environ.update(asked["environment"])
        sys.argv = asked["argv"]
        exec(compile(asked["code"], "call", "exec"), {"__name__": "__main__"})
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001 - whatever it is, the test shows it
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    _serve()

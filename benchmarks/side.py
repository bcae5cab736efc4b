"""A side in a process of its own: `python -m benchmarks.side NAME`, JSON lines in and out.

So each side has its own interpreter and environment, its own memory to be measured, and none
slows another's start. Results go to the descriptor that was standard output; whatever libraries
print goes to standard error.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import traceback

from benchmarks.machine import version_of
from benchmarks.sides import SideConfig, make_side
from benchmarks.workloads import build


def main() -> None:
    """Loads the side named, then runs workloads until standard input ends."""
    results = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    config = SideConfig(**json.loads(sys.argv[2]))
    side = make_side(sys.argv[1], config)
    pids = side.pids or {"side": os.getpid()}
    backend = {**side.backend, "triton": version_of("triton")}
    hello = {"version": side.version, "pids": pids, "backend": backend}
    print(json.dumps(hello), file=results)
    for line in sys.stdin:
        asked = json.loads(line)
        work = build(asked["workload"], asked["size"], asked["vocab"], asked["repetition"])
        forget_device_peak()
        try:
            answer = {**side.run(work).as_json(), "device_peak_bytes": device_peak()}
        except NotImplementedError:
            answer = {"cannot": True}
        except Exception as error:  # noqa: BLE001 - what fails is put down, and the rest is measured
            traceback.print_exc()
            answer = {"failed": f"{type(error).__name__}: {error}"[:500]}
            give_back_memory()
        print(json.dumps(answer), file=results)
    side.close()


def device_peak() -> int | None:
    """Most bytes of a GPU that torch held in this process since `forget_device_peak`."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return None
    return int(torch.cuda.max_memory_allocated())


def forget_device_peak() -> None:
    """Lets torch count from here on."""
    if device_peak() is not None:
        sys.modules["torch"].cuda.reset_peak_memory_stats()


def give_back_memory() -> None:
    """Of a GPU, what a failure left: the next workload shall not fail of it too."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()

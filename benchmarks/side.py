"""A side in a process of its own: `python -m benchmarks.side NAME`, JSON lines in and out.

So each side has its own interpreter and environment, its own memory to be measured, and none
slows another's start. Results go to the descriptor that was standard output; whatever libraries
print goes to standard error.
"""

from __future__ import annotations

import json
import os
import sys

from benchmarks.sides import SideConfig, make_side
from benchmarks.workloads import build


def main() -> None:
    """Loads the side named, then runs workloads until standard input ends."""
    results = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    config = SideConfig(**json.loads(sys.argv[2]))
    side = make_side(sys.argv[1], config)
    pids = side.pids or {"side": os.getpid()}
    print(json.dumps({"version": side.version, "pids": pids}), file=results)
    for line in sys.stdin:
        asked = json.loads(line)
        work = build(asked["workload"], asked["size"], asked["vocab"], asked["repetition"])
        try:
            answer = side.run(work).as_json()
        except NotImplementedError:
            answer = {"cannot": True}
        print(json.dumps(answer), file=results)
    side.close()


if __name__ == "__main__":
    main()

"""All benchmarks, one after the other, each with its table: `python -m benchmarks [store|recorder|app ...]`.

Each runs in a process of its own, so that no memory of one is counted for the next.
"""

from __future__ import annotations

import subprocess
import sys

ALL = {"overhead": "What readings cost, recipe by recipe",
       "store": "Store", "recorder": "Recorder and follower", "app": "The app in a browser",
       "head_sweep": "The exact sweep over heads beside a loop",
       "library": "transformer-lens' tools beside a direct computation and ours",
       "detection": "Detection of transitions",
       "curvature": "Curvature beside its peers, where they are installed",
       "recipes": "Modular addition beside the reference loop"}  # fmt: skip


def main() -> int:
    """Run those asked for, else all; returns 1 where one failed, 2 for a name that is none."""
    asked = sys.argv[1:] or list(ALL)
    if unknown := [name for name in asked if name not in ALL]:
        print(f"No benchmark {unknown[0]!r}: there are {', '.join(ALL)}", file=sys.stderr)  # noqa: T201
        return 2
    failed = 0
    for name in asked:
        print(f"\n## {ALL[name]}\n", flush=True)  # noqa: T201
        failed |= subprocess.run([sys.executable, "-m", f"benchmarks.{name}"]).returncode
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

"""All benchmarks, each in a process of its own: `python -m benchmarks [names]`.

Every line compares the project with a named peer on the same work in the same run; a ratio is peer : project.
"""

import os
import platform
import subprocess
import sys

NAMES = [
    "blocks",
    "prox",
    "ridge",
    "depth_two",
    "portfolio",
    "branch",
    "restricted",
    "enclosures",
    "profiles",
    "sensitivity",
    "deformation",
    "growth",
]


def main(names: list[str]) -> int:
    unknown = sorted(set(names) - set(NAMES))
    if unknown:
        print(f"names: expected some of {', '.join(NAMES)}, got {', '.join(unknown)}", file=sys.stderr)
        return 2
    print(f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}")
    failed = False
    for name in names or NAMES:
        print(f"\n== {name}", flush=True)
        failed |= subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], check=False).returncode != 0
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

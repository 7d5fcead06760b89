"""All benchmarks, each in a process of its own: `python -m benchmarks [names]`.

Every line compares the project with a named peer on the same work in the same run; a ratio is peer : project.  What takes hours is behind
flags of single modules: `depth_two --full`, `branch --seconds 60 --full`, `portfolio --grids 16,32`.
"""

import os
import platform
import subprocess
import sys
import time

from benchmarks.timing import has_cifar10

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
ON_CIFAR10 = {"branch", "profiles"}  # the others take the bundled photographs where that is not at hand


def main(names: list[str]) -> int:
    unknown = sorted(set(names) - set(NAMES))
    if unknown:
        print(f"names: expected some of {', '.join(NAMES)}, got {', '.join(unknown)}", file=sys.stderr)
        return 2
    print(f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}")
    failed = False
    for name in names or NAMES:
        print(f"\n== {name}", flush=True)
        if name in ON_CIFAR10 and not has_cifar10():
            print("skipped: set LINCONV_DATA to the folder of cifar-10-batches-bin")
            continue
        start = time.monotonic()
        failed |= subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], check=False).returncode != 0
        print(f"{name}: {time.monotonic() - start:.0f} s", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Time of `import workbench` and `import pandas`, in fresh interpreters in turn. Last line JSON."""

import json
import subprocess
import sys
import time
from statistics import median


def seconds(module: str) -> float:
    """A whole interpreter that imports `module`, less one that imports nothing."""
    took = []
    for code in ("pass", f"import {module}"):
        began_s = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True)
        took.append(time.perf_counter() - began_s)
    return took[1] - took[0]


def main() -> None:
    rows: dict[str, list[float]] = {"workbench": [], "pandas": []}
    for _ in range(7):
        for module, taken in rows.items():
            taken.append(seconds(module))
    for module, taken in rows.items():
        print(f"import {module:10} {median(taken):.3f} s (of {min(taken):.3f} to {max(taken):.3f})")
    print(json.dumps({module: round(median(taken), 4) for module, taken in rows.items()}))


if __name__ == "__main__":
    main()

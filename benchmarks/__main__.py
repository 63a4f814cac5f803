"""All benchmarks of this folder, one after the other: `python -m benchmarks`."""

import importlib
import pkgutil
import sys

import benchmarks

if __name__ == "__main__":
    for found in sorted(pkgutil.iter_modules(benchmarks.__path__), key=lambda module: module.name):
        if found.name != "__main__":
            print(f"\n== {found.name}", flush=True)
            sys.argv = [found.name]
            importlib.import_module(f"benchmarks.{found.name}").main()

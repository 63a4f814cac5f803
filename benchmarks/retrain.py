"""What `mlsys retrain` costs over its own cells as a plain script: `python -m benchmarks.retrain [--repeats 2]`.

Both train on the reference project's payments, each in an empty folder for results. The fastest of each is compared,
because everything else that runs on the machine only ever adds time. The target is a ratio of at most 1.3.
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

from benchmarks.runs import measure

root = Path(__file__).parents[1]


def script_of(notebook: Path) -> str:
    """The code of a notebook, with its default parameters."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    return "\n".join(["import matplotlib", "matplotlib.use('agg')", *code]) + "\n"


def main() -> None:
    """Measure and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=2)
    options = parser.parse_args()
    os.chdir(root)
    with tempfile.TemporaryDirectory() as name:
        script = Path(name) / "retrain.py"
        script.write_text(script_of(root / "nbs" / "runs" / "retrain.ipynb"), encoding="utf-8")
        commands = [[sys.executable, str(script)], [sys.executable, "-m", "mlsys.cli", "retrain"]]
        rounds = []
        for number in range(options.repeats):
            rounds.append([])
            for kind, command in enumerate(commands):
                os.environ["MLSYS_VAR"] = str(Path(name) / f"var-{number}-{kind}")
                rounds[-1].append(measure(command))
    for label, column in (("clock", 0), ("processor", 1)):
        plain, run = (min(each[kind][column] for each in rounds) for kind in (0, 1))
        print(f"{label:10} script {plain:6.2f} s   mlsys retrain {run:6.2f} s   ratio {run / plain:.2f}")


if __name__ == "__main__":
    main()

"""What a notebook run costs over the same cells as a plain script: `python benchmarks/runs.py --seconds 10`.

Both start in a fresh process, one after the other, several times; the fastest of each is compared, because everything
else that runs on the machine only ever adds time. The target is a ratio of at most 1.3 on a job of 10 seconds.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nbformat.v4 as v4

parameters = "seed: int = 0      # the same seed gives the same model\nmodels: int = 4    # how many to train"
cells = [
    "import time\nimport matplotlib.pyplot as plt\nimport numpy as np\nimport pandas as pd\n"
    "from sklearn.ensemble import HistGradientBoostingClassifier\nfrom sklearn.metrics import roc_auc_score",
    "rng = np.random.default_rng(seed)\nX = pd.DataFrame(rng.normal(size=(50_000, 20))).add_prefix('x')\n"
    "y = (X.x0 * X.x1 + X.x2 + rng.normal(size=len(X)) > 0).astype(int)",
    "X.describe()",
    "X.head(20)",
    *[f"fig, ax = plt.subplots()\nax.hist(X.x{i}, bins=50);" for i in range(4)],
    "fitted = [HistGradientBoostingClassifier(max_iter=100, random_state=seed + i).fit(X[::2], y[::2])"
    " for i in range(models)]",
    "scores = [roc_auc_score(y[1::2], model.predict_proba(X[1::2])[:, 1]) for model in fitted]\nscores",
    *["print(pd.Series(scores).describe())"] * 6,
    "from mlsys.runs import finish\nfinish(metrics={'roc_auc': max(scores)})",
]


def write_both(folder: Path, models: int) -> list[list[str]]:
    """The commands of the plain script and of the notebook run."""
    code = [parameters.replace("= 4", f"= {models}"), *cells]
    (folder / "script.py").write_text("import matplotlib\nmatplotlib.use('agg')\n" + "\n".join(code) + "\n")
    pairs = [(v4.new_markdown_cell("why"), v4.new_code_cell(source)) for source in code]
    notebook = v4.new_notebook(cells=[cell for pair in pairs for cell in pair])
    notebook.cells[1].metadata["tags"] = ["parameters"]
    (folder / "job.ipynb").write_text(json.dumps(notebook))
    (folder / "run.py").write_text(
        "from pathlib import Path\nfrom mlsys.core import Project\nfrom mlsys.runs import run_notebook\n"
        "here = Path(__file__).parent\n"
        "run_notebook(here / 'job.ipynb', {'seed': '0'}, Project(here, 'job', here / 'nbs'))\n"
    )
    return [[sys.executable, str(folder / name)] for name in ("script.py", "run.py")]


def measure(command: list[str]) -> tuple[float, float]:
    """Seconds on the clock, and of processor time with all children."""
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    environment.setdefault("OMP_NUM_THREADS", "1")  # threads that spin while others work would be measured as well
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # without compiled modules every start measures the compiler
    subprocess.run(command, check=True, capture_output=True, env=environment)
    clock, after = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
    return clock, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Measure and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10, help="how long the plain script takes at least")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        measure(write_both(folder, 1)[1])
        one = measure(write_both(folder, 1)[0])[1]
        more = (measure(write_both(folder, 5)[0])[1] - one) / 4
        commands = write_both(folder, max(1, round(1 + (options.seconds - one) / max(more, 0.1)) + 1))
        rounds = [[measure(command) for command in commands] for _ in range(options.repeats)]
    for label, column in (("clock", 0), ("processor", 1)):
        script, run = (min(each[kind][column] for each in rounds) for kind in (0, 1))
        print(f"{label:10} script {script:6.2f} s   notebook run {run:6.2f} s   "
              f"overhead {run - script:5.2f} s   ratio {run / script:.2f}")


if __name__ == "__main__":
    main()

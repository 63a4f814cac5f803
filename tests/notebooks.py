"""Every notebook of this checkout, executed as for the site: `python tests/notebooks.py`. The first error of each is told."""
import sys
from pathlib import Path

from mlsys.core import MlsysError, Project
from mlsys.site import execute_site

if __name__ == "__main__":  # its workers import this file, too
    try:
        print(f"{len(execute_site(Project.find(Path(__file__).parents[1])))} notebooks run through")
    except MlsysError as error:
        sys.exit(str(error))

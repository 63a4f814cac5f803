"""Package build: every value lives in settings.ini, edit there."""
import shlex
from configparser import ConfigParser
from pathlib import Path

import setuptools

here = Path(__file__).parent
config = ConfigParser(delimiters=["="])
config.read(here / "settings.ini", encoding="utf-8")
settings = config["DEFAULT"]
library = settings["lib_path"]
licenses = {"apache2": "Apache-2.0", "mit": "MIT", "bsd3": "BSD-3-Clause"}
notebooks = f"{library}.notebooks"  # the starter: the same notebooks, shipped without a second copy
top = f"{notebooks}.top"  # and the bentofile of this very folder

setuptools.setup(
    name=settings["lib_name"],
    version=settings["version"],
    description=settings["description"],
    keywords=settings["keywords"],
    author=settings["author"],
    author_email=settings["author_email"],
    url=settings["git_url"],
    license=licenses[settings["license"]],
    python_requires=">=" + settings["min_python"],
    packages=[*setuptools.find_packages(include=[library, f"{library}.*"]), notebooks, top],
    package_dir={notebooks: settings["nbs_path"], top: "."},
    package_data={
        notebooks: ["project/*.ipynb", "runs/*.ipynb"],
        top: ["bentofile.yaml"],
        library: ["py.typed", "page.html"],
    },
    install_requires=shlex.split(settings["requirements"]),
    extras_require={
        "dev": shlex.split(settings["dev_requirements"] + " " + settings["postgresql_requirements"]
                           + " " + settings["mlflow_requirements"]),
        "mlflow": shlex.split(settings["mlflow_requirements"]),
        "postgresql": shlex.split(settings["postgresql_requirements"]),
    },
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    entry_points={
        "console_scripts": settings["console_scripts"].split(),
        "nbdev": [f"{library}={library}._modidx:d"],
    },
)

"""Sphinx configuration. Nothing is downloaded and no notebook is run while the documentation is built."""

from __future__ import annotations

import shutil
import warnings
from importlib.metadata import version as installed_version
from pathlib import Path

# ArviZ 0.23 announces its 1.x once a day; autodoc would pass that on as a failed import.
warnings.filterwarnings("ignore", message=r"\s*ArviZ is undergoing a major refactor", category=FutureWarning)

project = "pyro_boltzmann"
author = "The pyro_boltzmann authors"
project_copyright = "The pyro_boltzmann authors. Apache License 2.0"
version = release = installed_version("pyro-boltzmann")

extensions = ["sphinx.ext.autodoc", "sphinx.ext.mathjax", "sphinx.ext.viewcode", "myst_nb"]
exclude_patterns = ["_build", "jupyter_execute"]

html_theme = "furo"
html_title = "pyro_boltzmann"
html_copy_source = False

myst_enable_extensions = ["amsmath", "colon_fence", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"
nb_merge_streams = True

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
# Otherwise overridden methods show torch's and Pyro's docstrings, with links that mean nothing here.
autodoc_inherit_docstrings = False


def _copy_tutorials() -> None:
    """Bring the notebooks under the source folder, where Sphinx wants its pages; drop copies of removed ones."""
    here = Path(__file__).parent
    sources = {path.name: path for path in (here.parent / "tutorials").glob("*.ipynb")}
    for copy in (here / "tutorials").glob("*.ipynb"):
        if copy.name not in sources:
            copy.unlink()
    for name, source in sources.items():
        # copy2 keeps the time stamp, so unchanged notebooks are not built again.
        shutil.copy2(source, here / "tutorials" / name)


_copy_tutorials()

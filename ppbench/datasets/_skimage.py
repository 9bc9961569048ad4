"""The files inside scikit-image's wheel, read straight from the package so that nothing is ever downloaded."""

from importlib.util import find_spec
from pathlib import Path

from ppbench.errors import UserError


def wheel_file(name: str) -> Path:
    """Return the path of a data file that scikit-image ships.

    Raises:
        UserError: the installed scikit-image lacks it.
    """
    spec = find_spec("skimage")
    folders = list(spec.submodule_search_locations or []) if spec else []
    for folder in folders:
        path = Path(folder) / "data" / name
        if path.is_file():
            return path
    raise UserError(f"the installed scikit-image lacks its data file {name!r}: install scikit-image 0.22 or later "
                    "from PyPI")

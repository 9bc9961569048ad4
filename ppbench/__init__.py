"""ppbench: does a privacy-preserving image defense really protect anything?"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("ppbench")
except PackageNotFoundError:  # a checkout that was never installed
    __version__ = "0+unknown"

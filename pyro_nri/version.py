"""Which version of this library is installed."""

from importlib import metadata

LIBRARY = "pyro_nri"


def installed_version() -> str:
    """Version of this library that is installed; "unknown" where it only lies beside."""
    try:
        return metadata.version(LIBRARY)
    except metadata.PackageNotFoundError:
        return "unknown"

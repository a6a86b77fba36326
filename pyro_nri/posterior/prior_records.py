"""The prior of a posterior inside the tree: the weights of the types, and the prior's name."""

import numpy as np
import xarray as xr

from pyro_nri.inference.draws import PriorRecord


def prior_variable(record: PriorRecord) -> xr.Variable:
    """The variable ``type_weight`` (type) of the group ``constant_data``."""
    attributes: dict[str, object] = {"prior": record.name}
    if record.concentration is not None:
        attributes["concentration"] = np.array(record.concentration)
    return xr.Variable(("type",), np.array(record.type_weight), attributes)


def prior_record(constant: xr.Dataset) -> PriorRecord | None:
    """The prior that ``constant_data`` keeps; None where it does not say it, as in files of earlier versions."""
    if "type_weight" not in constant:
        return None
    weight = constant["type_weight"]
    found = weight.attrs.get("concentration")
    concentration = None if found is None else (float(found[0]), float(found[1]))
    return PriorRecord(str(weight.attrs["prior"]), tuple(weight.values.tolist()), concentration)

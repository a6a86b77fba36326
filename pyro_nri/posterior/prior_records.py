"""The prior of a posterior inside the tree: how probable it makes each type, and its name."""

import numpy as np
import xarray as xr

from pyro_nri.inference.draws import PriorRecord


def prior_variable(record: PriorRecord) -> xr.Variable:
    """The variable ``type_probability`` (type) of the group ``constant_data``."""
    attributes: dict[str, object] = {"prior": record.name}
    if record.concentration is not None:
        attributes["concentration"] = np.array(record.concentration)
    return xr.Variable(("type",), np.array(record.type_probability), attributes)


def prior_record(constant: xr.Dataset) -> PriorRecord | None:
    """The prior that ``constant_data`` keeps; None where it does not say it, as in files of earlier versions."""
    # Before they had one variable for it, files named the prior at the weights of its types, which for "sparse" and
    # "charges" are not their probabilities; those were in ``type_prior``.
    names = [name for name in ("type_probability", "type_weight") if name in constant]
    if not names:
        return None
    said = constant[names[0]]
    probability = constant.get("type_prior", said)
    found = said.attrs.get("concentration")
    concentration = None if found is None else (float(found[0]), float(found[1]))
    return PriorRecord(str(said.attrs["prior"]), tuple(probability.values.tolist()), concentration)

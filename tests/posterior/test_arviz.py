"""ArviZ takes what we store: summaries of indicators, its plots, and the tree read by xarray alone."""

import arviz as az
import matplotlib as mpl
import numpy as np
import pytest
import xarray as xr

from pyro_nri.posterior.diagnostics import edge_diagnostics
from pyro_nri.posterior.probability import indicators
from pyro_nri.posterior.storage import write_posterior

mpl.use("Agg")


@pytest.fixture
def path(make_tree, tmp_path):
    rng = np.random.default_rng(0)
    edge_type = (rng.random((4, 100, 3, 6)) < rng.random((3, 6))).astype(np.int8)
    path = tmp_path / "posterior.nc"
    write_posterior(make_tree(edge_type, type_names=["none", "spring"]), path)
    return path


def test_xarray_reads_the_tree_without_us(path):
    tree = xr.load_datatree(path, engine="h5netcdf")
    assert tree["posterior"]["edge_type"].dims == ("chain", "draw", "edge")
    assert tree["posterior"]["edge_type"].attrs["flag_meanings"] == "none spring"


def test_summary_of_indicators(path):
    """ArviZ's figures of the file's indicators are ours; of type codes they would mean nothing."""
    tree = xr.load_datatree(path, engine="h5netcdf")
    flags = indicators(tree)
    found = az.summary(flags.sel(type="spring"), kind="diagnostics", round_to="none")
    ours = edge_diagnostics(tree["posterior/edge_type"].values, 2)
    np.testing.assert_allclose(found["r_hat"], ours.r_hat[:, 1], rtol=1e-8)
    np.testing.assert_allclose(found["ess_bulk"], ours.ess[:, 1], rtol=1e-8)
    np.testing.assert_allclose(found["mcse_mean"], ours.mcse[:, 1], rtol=1e-8)
    assert found.index[0] == "edge_is_type[0: 0 -> 1]"


def test_summary_of_the_file(path):
    """What ArviZ itself makes of the file: the same dimensions, with the names of scenes and entities beside."""
    data = az.from_netcdf(path)
    assert data.posterior["edge_type"].sizes == {"chain": 4, "draw": 100, "edge": 18}
    found = az.summary(data, var_names=["edge_type"], kind="diagnostics", round_to="none")
    assert len(found) == 18
    assert az.summary(data, var_names=["log_joint"], group="sample_stats", kind="diagnostics").shape[0] == 3


@pytest.mark.parametrize("plot", ["plot_trace", "plot_rank", "plot_forest", "plot_autocorr", "plot_ess"])
def test_plots_of_indicators(path, plot):
    import matplotlib.pyplot as plt

    flags = indicators(xr.load_datatree(path, engine="h5netcdf")).sel(type="spring").isel(edge=slice(0, 2))
    assert np.atleast_1d(getattr(az, plot)(flags)).size >= 1
    plt.close("all")


def test_plot_of_the_file(path):
    import matplotlib.pyplot as plt

    assert az.plot_trace(az.from_netcdf(path), var_names=["edge_type"], coords={"edge": [0]}).size == 2
    plt.close("all")

import arviz as az
import h5netcdf
import numpy as np
import pytest
import xarray as xr

from pyro_nri.posterior.convert import to_draws
from pyro_nri.posterior.storage import read_posterior, write_posterior


@pytest.fixture
def path(tmp_path):
    return tmp_path / "posterior.nc"


def test_round_trip(make_tree, unequal, make_draws, path):
    tree = make_tree(scenes=unequal, warmup=make_draws(unequal), attributes={"model": "m.pt"}, type_alignment=[1, 0])
    write_posterior(tree, path)
    for found in (read_posterior(path), xr.open_datatree(path, engine="h5netcdf").load()):
        xr.testing.assert_identical(found, tree)
    assert to_draws(read_posterior(path)).move_names == ("single edge", "receiver")
    assert list(path.parent.iterdir()) == [path]


def test_arviz_reads_the_file(make_tree, path):
    tree = make_tree(edge_probability=np.full((3, 6, 2), 0.5), log_marginal=np.zeros(3), method="exact")
    write_posterior(tree, path)
    data = az.from_netcdf(path)
    xr.testing.assert_equal(data.posterior.load(), tree["posterior"].to_dataset())
    assert data.attrs["method"] == "exact"


def test_run_without_draws_is_kept(make_tree, path):
    tree = make_tree(np.zeros((2, 0, 3, 6), np.int8), complete=False)
    write_posterior(tree, path)
    assert to_draws(read_posterior(path)).edge_type.shape == (2, 0, 3, 6)


def test_missing_file(path):
    with pytest.raises(FileNotFoundError, match="there is no posterior file"):
        read_posterior(path)


def test_damaged_file(make_tree, path):
    write_posterior(make_tree(), path)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ValueError, match="damaged or cut off"):
        read_posterior(path)
    path.write_text("scene,sender\n")
    with pytest.raises(ValueError, match="not a readable NetCDF file"):
        read_posterior(path)


def test_foreign_newer_and_partial_files(make_tree, path):
    xr.Dataset({"x": 1.0}).to_netcdf(path, engine="h5netcdf")
    with pytest.raises(ValueError, match="not a posterior that pyro_nri wrote"):
        read_posterior(path)
    tree = make_tree()
    newer = tree.copy()
    newer.attrs["posterior_format"] = 99
    write_posterior(newer, path)
    with pytest.raises(ValueError, match="posterior format 99"):
        read_posterior(path)
    del tree["sample_stats"]
    write_posterior(tree, path)
    with pytest.raises(ValueError, match="sample_stats is missing"):
        read_posterior(path)


@pytest.mark.parametrize(
    ("group", "name", "value", "sentence"),
    [
        ("posterior", "edge_type", 7, r"posterior/edge_type must be between 0 and 1, found 7"),
        ("posterior", "edge_type", -1, r"posterior/edge_type must be between 0 and 1, found -1"),
        ("edge_posterior", "edge_probability", np.nan, r"edge_posterior/edge_probability must be between 0 and 1"),
        ("edge_posterior", "edge_probability", 1.5, r"edge_posterior/edge_probability .*, found 1.5"),
    ],
)
def test_impossible_values(make_tree, path, group, name, value, sentence):
    tree = make_tree(edge_probability=np.full((3, 6, 2), 0.5), log_marginal=np.zeros(3), method="exact")
    write_posterior(tree, path)
    with h5netcdf.File(path, "r+") as file:
        values = file[group][name][...]
        values.ravel()[3] = value
        file[group][name][...] = values
    with pytest.raises(ValueError, match=sentence):
        read_posterior(path)

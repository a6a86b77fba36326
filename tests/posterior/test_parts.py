import numpy as np
import pytest
import xarray as xr

from pyro_nri.posterior.convert import scenes_of, to_datatree, to_draws
from pyro_nri.posterior.parts import scene_names, scene_parts, select_scenes
from pyro_nri.posterior.storage import open_posterior, read_posterior, write_posterior


@pytest.fixture
def tree(make_tree, make_draws, unequal):
    known = np.random.default_rng(0).dirichlet([1, 1], (2, 12))
    return make_tree(
        scenes=unequal,
        warmup=make_draws(unequal),
        edge_probability=known,
        log_marginal=np.array([1.0, 2.0]),
        type_alignment=[1, 0],
    )


def test_a_scene_alone_is_what_it_would_be_alone(tree, unequal):
    """Its draws and data, under numbers that count from 0 again."""
    found = select_scenes(tree, ["other"])
    draws, alone = to_draws(tree), scenes_of(tree)[1:2]
    kept = to_draws(found)
    assert (kept.group_names, scenes_of(found).scene_names) == (("other",), ("other",))
    np.testing.assert_array_equal(kept.edge_type, draws.edge_type[:, :, 1:])
    np.testing.assert_array_equal(kept.edge_probability, draws.edge_probability[1:])
    np.testing.assert_array_equal(kept.warmup.log_joint, draws.warmup.log_joint[:, :, 1:])
    wanted = to_datatree(kept, alone, type_alignment=[1, 0])
    for name in ("posterior", "sample_stats", "observed_data", "edge_posterior"):
        xr.testing.assert_equal(found[name].to_dataset(), wanted[name].to_dataset())
    xr.testing.assert_equal(
        found["constant_data"]["true_edge_type"].variable, wanted["constant_data"]["true_edge_type"].variable
    )


def test_recordings_of_a_group_stay_together_and_order_is_the_posteriors(tree):
    assert scenes_of(select_scenes(tree, "shoal")).scene_names == ("Monday", "Tuesday")
    assert scene_names(select_scenes(tree, ["other", "shoal"])) == ["shoal", "other"]


def test_parts_make_up_the_whole(make_tree):
    tree = make_tree(np.random.default_rng(0).integers(0, 2, (2, 10, 7, 6)))
    parts = list(scene_parts(tree, max_values=2 * 10 * 6 * 3))
    assert [scene_names(part) for part in parts] == [["0", "1", "2"], ["3", "4", "5"], ["6"]]
    whole = np.concatenate([to_draws(part).edge_type for part in parts], axis=2)
    np.testing.assert_array_equal(whole, to_draws(tree).edge_type)
    assert len(list(scene_parts(tree, max_values=1))) == 7
    (all_of_it,) = scene_parts(tree)
    assert all_of_it is tree


@pytest.mark.parametrize(("scenes", "message"), [(["9"], "has no scene '9', only shoal, other"), ([], "at least one")])
def test_scenes_that_are_not_there(tree, scenes, message):
    with pytest.raises(ValueError, match=message):
        select_scenes(tree, scenes)


def test_opened_files_are_read_when_used(tree, tmp_path):
    path = tmp_path / "posterior.nc"
    write_posterior(tree, path)
    with open_posterior(path) as opened:
        part = select_scenes(opened, ["other"])
        assert not part["posterior/edge_type"].variable._in_memory
        np.testing.assert_array_equal(to_draws(part).edge_type, to_draws(tree).edge_type[:, :, 1:])
        assert not opened["posterior/edge_type"].variable._in_memory  # only the part was
    xr.testing.assert_identical(read_posterior(path, ["other"]), select_scenes(tree, ["other"]))
    with pytest.raises(ValueError, match="has no scene 'third'"):
        read_posterior(path, ["third"])

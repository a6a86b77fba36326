import dataclasses

import arviz as az
import numpy as np
import pytest
import torch
import xarray as xr

from pyro_nri.inference.draws import PriorRecord
from pyro_nri.posterior.convert import group, scenes_of, to_datatree, to_draws


def assert_same_draws(found, wanted):
    for field in dataclasses.fields(wanted):
        ours, theirs = getattr(found, field.name), getattr(wanted, field.name)
        if field.name == "warmup" and theirs is not None:
            assert_same_draws(ours, dataclasses.replace(theirs, attributes={}, method=wanted.method))
        elif isinstance(theirs, np.ndarray):
            np.testing.assert_array_equal(ours, theirs, err_msg=field.name)
            assert ours.dtype == theirs.dtype, field.name
        else:
            assert ours == theirs, field.name


def exact_knowledge(scenes):
    """Probabilities of padded edges are certain of type 0."""
    probability = np.random.default_rng(0).dirichlet([1, 1], (scenes.num_groups, scenes.num_edges))
    mask = scenes.edge_mask[scenes.group_first_scene].numpy()
    return {
        "edge_probability": np.where(mask[..., None], probability, [1.0, 0.0]),
        "log_marginal": np.arange(scenes.num_groups) - 3.5,
        "receiver_probability": np.random.default_rng(1).dirichlet([1] * 8, (scenes.num_groups, scenes.num_entities)),
        "prior": PriorRecord("sparse", (0.7, 0.3), (1.5, 3.5)),
    }


def test_edges_are_named_and_padding_is_left_out(unequal, make_draws):
    draws = make_draws(unequal)
    posterior = group(to_datatree(draws, unequal), "posterior")
    assert posterior.sizes == {"chain": 2, "draw": 50, "edge": 12 + 6}
    rows = list(zip(*(posterior[name].values.tolist() for name in ("scene", "sender", "receiver")), strict=True))
    assert rows[:4] == [("shoal", "a", "b"), ("shoal", "a", "c"), ("shoal", "a", "d"), ("shoal", "b", "a")]
    assert rows[12:] == [("other", s, r) for s, r in ("ef", "eg", "fe", "fg", "ge", "gf")]
    # In the padded layout of four entities the edge f -> g (1 -> 2) is number 4.
    assert posterior["edge_index"].values[15] == 4
    np.testing.assert_array_equal(posterior["edge_type"].values[:, :, 15], draws.edge_type[:, :, 1, 4])


def test_draws_come_back(unequal, make_draws):
    known = exact_knowledge(unequal)
    options = {"num_evaluations": 99, "complete": False, "prior": known["prior"]}
    warmup = make_draws(unequal, temperature=np.linspace(30, 1, 50), **options)
    attributes = {"model": "m.pt", "rate": 0.5}
    draws = make_draws(unequal, warmup=warmup, complete=False, attributes=attributes, **known)
    assert_same_draws(to_draws(to_datatree(draws, unequal)), draws)


@pytest.mark.parametrize(
    ("record", "weight"),
    [
        (PriorRecord("independent", (0.3, 0.7)), [0.3, 0.7]),
        (PriorRecord("sparse", (0.7, 0.3), (1.5, 3.5)), [0.0, 1.0]),
        (PriorRecord("charges", (0.75, 0.25)), [0.5, 0.5]),
    ],
)
def test_the_prior_of_older_files_is_read(make_scenes, make_draws, record, weight):
    """They kept the weights of the types, and their probabilities beside them."""
    scenes = make_scenes()
    tree = to_datatree(make_draws(scenes, prior=record), scenes)
    constant = group(tree, "constant_data").rename(type_probability="type_prior")
    said = {"prior": record.name} | ({"concentration": record.concentration} if record.concentration else {})
    tree["constant_data"] = xr.DataTree(constant.assign(type_weight=("type", weight, said)))
    assert to_draws(tree).prior == record


def test_scenes_come_back(unequal, make_draws):
    found = scenes_of(to_datatree(make_draws(unequal), unequal))
    for field in dataclasses.fields(unequal):
        ours, theirs = getattr(found, field.name), getattr(unequal, field.name)
        assert torch.equal(ours, theirs) if isinstance(theirs, torch.Tensor) else ours == theirs, field.name


def test_scenes_without_truth_come_back(make_scenes, make_draws):
    scenes = make_scenes(edge_type=None)
    found = scenes_of(to_datatree(make_draws(scenes), scenes))
    assert found.edge_type is None
    assert found.entity_kind is None
    assert found.initial_state is None


def test_data_and_constants(unequal, make_draws):
    tree = to_datatree(
        make_draws(unequal), unequal, type_alignment=[1, 0], type_names=["no link", "spring"], first_frame=9
    )
    observed, constant = group(tree, "observed_data"), group(tree, "constant_data")
    assert observed["trajectory"].dims == ("recording", "frame", "entity", "state")
    assert observed["frame"].values[0] == 9
    np.testing.assert_array_equal(np.isnan(observed["trajectory"]).all("state"), ~constant["observation_mask"])
    assert constant["time_step"] == 0.1
    assert constant["type_alignment"].values.tolist() == [1, 0]
    assert constant["type"].values.tolist() == ["no link", "spring"]
    assert group(tree, "posterior")["edge_type"].attrs["flag_meanings"] == "no_link spring"
    np.testing.assert_array_equal(constant["true_edge_type"].values[:12], unequal.edge_type[0])


def test_root_says_how_it_was_made(make_scenes, make_draws):
    scenes = make_scenes()
    attributes = to_datatree(make_draws(scenes), scenes, attributes={"command": "infer", "flag": True}).attrs
    wanted = {"inference_library": "pyro_nri", "posterior_format": 1, "method": "mcmc", "seed": 7, "num_edge_types": 2}
    wanted |= {"num_evaluations": 1234, "complete": 1, "command": "infer", "flag": 1}
    assert wanted.items() <= attributes.items()
    assert "given the learned modules" in attributes["conditioning"]


def test_estimator_follows_the_method(make_scenes, make_draws):
    scenes = make_scenes()
    for method, estimator in (("exact", "exact"), ("mcmc", "rao-blackwell")):
        tree = to_datatree(make_draws(scenes, method=method, **exact_knowledge(scenes)), scenes)
        assert group(tree, "edge_posterior")["edge_probability"].attrs["estimator"] == estimator
        assert group(tree, "edge_posterior")["log_marginal"].sel(scene="1") == -2.5


def test_contradicting_truth_is_left_out_with_a_warning(make_scenes, make_draws):
    scenes = make_scenes(2, edge_type=[[0] * 6, [1] * 6]).share_structure("all")
    with pytest.warns(UserWarning, match="different true edge types"):
        tree = to_datatree(make_draws(scenes), scenes)
    assert "true_edge_type" not in group(tree, "constant_data")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"type_names": ["a"]}, "type_names must have 2 entries"),
        ({"type_alignment": [0, 1, 2]}, "type_alignment must have shape"),
        ({"attributes": {"seed": 1}}, "must not be called seed"),
    ],
)
def test_bad_arguments_are_named(make_scenes, make_draws, arguments, message):
    scenes = make_scenes()
    with pytest.raises(ValueError, match=message):
        to_datatree(make_draws(scenes), scenes, **arguments)


def test_draws_of_other_scenes_are_refused(make_scenes, make_draws):
    scenes = make_scenes()
    with pytest.raises(ValueError, match="same structure groups"):
        to_datatree(make_draws(scenes), scenes[:2])
    with pytest.raises(ValueError, match=r"must have shape \[C, S, 3, 12\]"):
        to_datatree(make_draws(scenes), make_scenes(num_entities=4))


def test_missing_group_is_named():
    with pytest.raises(ValueError, match="no group 'posterior'"):
        group(xr.DataTree(), "posterior")


def test_arviz_selects(unequal, make_draws, tmp_path):
    tree = to_datatree(make_draws(unequal, **exact_knowledge(unequal)), unequal)
    path = tmp_path / "posterior.nc"
    tree.to_netcdf(path, engine="h5netcdf")
    data = az.from_netcdf(path)
    assert {"posterior", "sample_stats", "edge_posterior", "observed_data", "constant_data"} <= set(data.groups())
    assert az.extract(data).sizes["sample"] == 100
    assert float(data.posterior["edge_type"].sel(edge=0).mean()) == pytest.approx(
        float(group(tree, "posterior")["edge_type"].values[:, :, 0].mean())
    )


def test_arviz_joins_chains(unequal, make_draws, tmp_path):
    path = tmp_path / "posterior.nc"
    to_datatree(make_draws(unequal), unequal).to_netcdf(path, engine="h5netcdf")
    data = az.from_netcdf(path)
    assert az.concat(data.isel(chain=[0]), data.isel(chain=[1]), dim="chain").posterior.sizes["chain"] == 2

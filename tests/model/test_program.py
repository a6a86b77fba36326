"""The Pyro program, its tensor twin, and what a user of Pyro does with them."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Predictive, Trace_ELBO

from pyro_nri.dynamics.message_passing import MessagePassing
from pyro_nri.dynamics.pair_forces import PairForces
from pyro_nri.model.noise import NormalNoise
from pyro_nri.model.priors import IndependentPrior
from pyro_nri.model.program import SceneModel
from pyro_nri.model.spec import ModelSpec, build_model
from pyro_nri.scenes.scenes import Scenes


def prior_draw(model, scenes, num_chains, seed=0):
    """Structures [C, G, E] in the support of the prior."""
    prior = model.structure_prior(model.prepare(scenes))
    shape = (num_chains, *prior.batch_shape, *prior.event_shape)
    uniform = torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)
    return prior.expand(shape[:-1]).from_uniform(uniform)


PROGRAMS = {
    "independent": ({}, {}),
    "symmetric": ({"prior": "symmetric", "num_edge_types": 3}, {}),
    "student_t": ({"noise": "student_t"}, {"missing": 0.1}),
    "shared": ({}, {"groups": ["b", "a", "b", "b"], "missing": 0.1}),
    "all share": ({"prior": "symmetric"}, {"groups": ["a"] * 4}),
    "horizon": ({"horizon": 3}, {"num_frames": 8, "missing": 0.1}),
    "padded": ({"prior": "symmetric"}, {"padded": [0, 2]}),
    "kinds": ({"num_entity_kinds": 2, "no_interaction": True}, {"kinds": 2}),
    "one hidden": ({"num_hidden": 1}, {}),
    "two hidden, shared": ({"num_hidden": 2, "horizon": 2}, {"groups": ["a", "b", "a", "a"]}),
    "hidden and padded": ({"num_hidden": 1, "num_entity_kinds": 2}, {"padded": [1], "kinds": 2}),
    "one scene": ({}, {"num_scenes": 1}),
    "geometric": ({"noise": "geometric"}, {"padded": [1], "missing": 0.1}),
    "geometric, hidden": ({"noise": "geometric", "num_hidden": 1}, {"groups": ["a", "b", "a", "a"]}),
}


@pytest.fixture(params=PROGRAMS)
def program(request, make_model, make_scenes):
    options, what = PROGRAMS[request.param]
    return make_model(**options), make_scenes(**what)


def hidden_states(model, scenes, num_chains):
    if not model.num_hidden:
        return None
    shape = (num_chains, scenes.num_scenes, model.num_hidden, scenes.state_size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(9), dtype=torch.double)


def test_log_joint_is_the_traced_program(program):
    model, scenes = program
    structures = prior_draw(model, scenes, 3)
    hidden = hidden_states(model, scenes, 3)
    joint = model.log_joint(scenes, structures, hidden)
    assert joint.shape == (3, scenes.num_groups)
    assert joint.dtype == torch.double
    for c in range(3):
        values = {"edge_type": structures[c]}
        if hidden is not None:
            values["hidden_state"] = hidden[c]
        trace = poutine.trace(poutine.condition(model, data=values)).get_trace(scenes)
        assert float(joint[c].sum().detach()) == pytest.approx(float(trace.log_prob_sum().detach()), rel=1e-10)


def test_sites(program):
    model, scenes = program
    torch.manual_seed(0)
    trace = poutine.trace(model).get_trace(scenes)
    trace.compute_log_prob()
    num_all = scenes.num_entities + model.num_hidden
    edge_type = trace.nodes["edge_type"]
    assert edge_type["value"].shape == (scenes.num_groups, num_all * (num_all - 1))
    assert edge_type["value"].dtype == torch.long
    assert edge_type["log_prob"].shape == (scenes.num_groups,)
    trajectory = trace.nodes["trajectory"]
    assert trajectory["is_observed"]
    assert torch.equal(trajectory["value"], scenes.trajectory[:, 1:])
    assert trajectory["log_prob"].shape == (scenes.num_scenes,)
    assert ("hidden_state" in trace.nodes) == bool(model.num_hidden)
    if model.num_hidden:
        value = trace.nodes["hidden_state"]["value"]
        assert value.shape == (scenes.num_scenes, model.num_hidden, scenes.state_size)
    plates = [frame.name for frame in edge_type["cond_indep_stack"]]
    assert plates == (["scene"] if scenes.num_groups == scenes.num_scenes else ["structure"])
    assert [frame.name for frame in trajectory["cond_indep_stack"]] == ["scene"]


def test_hidden_state_is_standard_normal_in_scaled_units(make_model, make_scenes):
    model, scenes = make_model(num_hidden=1), make_scenes()
    structures, hidden = prior_draw(model, scenes, 1), hidden_states(model, scenes, 1)
    rest = model.log_joint(scenes, structures, hidden) - model.log_likelihood(scenes, structures, hidden)
    rest = rest - model.structure_prior(scenes).log_prob(structures)
    wanted = [
        sum(-0.5 * x * x - 0.5 * math.log(2 * math.pi) for x in hidden[0, b].flatten().tolist()) for b in range(4)
    ]
    assert rest[0].tolist() == pytest.approx(wanted, rel=1e-9)
    # in raw units: offset and scale of the model, (0.3, -0.2) and (1.5, 0.7)
    inside = model.trajectory(scenes, structures, hidden).hidden_state
    torch.testing.assert_close(inside, hidden * torch.tensor([1.5, 0.7]) + torch.tensor([0.3, -0.2]))


def test_groups_add_their_scenes(make_model, make_scenes):
    model, scenes = make_model(), make_scenes(groups=["a", "b", "a", "a"])
    structures = prior_draw(model, scenes, 5)
    each = model.log_likelihood(scenes.share_structure("none"), structures[:, [0, 1, 0, 0]])
    wanted = torch.stack([each[:, 0] + each[:, 2] + each[:, 3], each[:, 1]], -1)
    torch.testing.assert_close(model.log_likelihood(scenes, structures), wanted)
    entities = model.entity_log_likelihood(scenes, structures)
    assert entities.shape == (5, 2, 3)
    torch.testing.assert_close(entities.sum(-1), wanted)


def test_predictive_from_the_prior(program):
    model, scenes = program
    torch.manual_seed(0)
    samples = Predictive(model, num_samples=6)(scenes, condition=False)
    num_all = scenes.num_entities + model.num_hidden
    assert samples["edge_type"].shape == (6, scenes.num_groups, num_all * (num_all - 1))
    assert samples["edge_type"].dtype == torch.long
    assert samples["trajectory"].shape == (6, scenes.num_scenes, scenes.num_frames - 1, scenes.num_entities, 2)
    assert samples["trajectory"].isfinite().all()
    assert len({tuple(z.flatten().tolist()) for z in samples["edge_type"]}) > 1


@pytest.mark.parametrize("parallel", [False, True])
def test_predictive_from_a_posterior(program, parallel):
    """With next to no noise the prediction of each draw is the rollout of its own structure."""
    model, scenes = program
    model.noise.change_scale.fill_(1e-12)
    posterior = {"edge_type": prior_draw(model, scenes, 5)}
    if model.num_hidden:
        posterior["hidden_state"] = hidden_states(model, scenes, 5)
    predictive = Predictive(model, posterior_samples=posterior, parallel=parallel, return_sites=("trajectory",))
    torch.manual_seed(0)
    found = predictive(scenes, condition=False)["trajectory"]
    assert found.shape == (5, scenes.num_scenes, scenes.num_frames - 1, scenes.num_entities, 2)
    present = scenes.entity_mask[:, None, :, None]
    for s in range(5):
        structure = posterior["edge_type"][s, scenes.group_index]
        state = scenes.trajectory[:, 0]
        if model.num_hidden:
            raw = posterior["hidden_state"][s] * torch.tensor([1.5, 0.7]) + torch.tensor([0.3, -0.2])
            state = torch.cat([state, raw], 1)
        num_all = state.shape[1]
        exists = torch.cat([scenes.entity_mask, torch.ones(len(state), model.num_hidden, dtype=torch.bool)], 1)
        pairs = [(i, j) for i in range(num_all) for j in range(num_all) if i != j]
        mask = torch.stack([exists[:, i] & exists[:, j] for i, j in pairs], -1)
        kind = scenes.entity_kind
        if kind is not None and model.num_hidden:
            kind = torch.cat([kind, torch.zeros(len(kind), model.num_hidden, dtype=torch.long)], 1)
        frames = []
        for _ in range(scenes.num_frames - 1):
            state = model.dynamics.step(state, structure, edge_mask=mask, entity_kind=kind).detach()
            frames.append(state[:, : scenes.num_entities])
        wanted = torch.stack(frames, 1)
        torch.testing.assert_close(found[s] * present, wanted * present, rtol=1e-8, atol=1e-8)


def test_predict_is_a_rollout_from_an_observed_frame(make_model, make_scenes):
    model, scenes = make_model(), make_scenes(groups=["a", "b", "a", "a"], padded=[0, 2, 3])
    structures = prior_draw(model, scenes, 2)
    found = model.predict(scenes, structures, start=2, num_steps=3)
    assert found.shape == (2, 4, 3, 3, 2)
    for c in range(2):
        state = scenes.trajectory[:, 2]
        for t in range(3):
            each = structures[c, [0, 1, 0, 0]]
            state = model.dynamics.step(state, each, edge_mask=scenes.edge_mask).detach()
            torch.testing.assert_close(found[c, :, t], state)
    with pytest.raises(ValueError, match="start must be a frame from 0 to 4, found 5"):
        model.predict(scenes, structures, start=5, num_steps=1)


def test_render_model(make_model, make_scenes):
    pytest.importorskip("graphviz")
    graph = pyro.render_model(make_model(num_hidden=1), model_args=(make_scenes(groups=["a", "b", "a", "a"]),))
    for word in ("edge_type", "hidden_state", "trajectory", "structure", "scene"):
        assert word in graph.source


def test_every_parameter_is_seen_by_pyro(make_model, make_scenes):
    model = make_model(3, num_entity_kinds=2)
    torch.manual_seed(0)
    with poutine.trace(param_only=True) as tracer:
        model(make_scenes(kinds=2))
    seen = {id(site["value"].unconstrained()) for site in tracer.trace.nodes.values() if site["type"] == "param"}
    assert seen == {id(parameter) for parameter in model.parameters()}


@pytest.mark.parametrize("learned", [True, False])
def test_fixed_type_weights_are_no_parameter(make_model, make_scenes, learned):
    model = make_model(learn_type_weights=learned)
    trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert ("prior.type_logits" in trainable) is learned


def test_svi_trains_the_modules(make_model, make_scenes):
    """Pyro's own SVI, with the structure given by a guide that draws it."""
    model, scenes = make_model(), make_scenes(num_scenes=6)
    truth = prior_draw(model, scenes, 1)[0]

    def guide(scenes):
        with pyro.plate("scene", scenes.num_scenes, dim=-1):
            pyro.sample("edge_type", dist.Delta(truth, event_dim=1))

    before = [parameter.detach().clone() for parameter in model.parameters()]
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), Trace_ELBO())
    losses = [svi.step(scenes) for _ in range(60)]
    assert losses[0] == pytest.approx(-float(make_model().log_joint(scenes, truth[None]).sum().detach()), rel=1e-9)
    assert losses[-1] < losses[0] - 10
    assert all(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_gradients_of_the_twin(make_model, make_scenes):
    model, scenes = make_model(), make_scenes()
    model.log_joint(scenes, prior_draw(model, scenes, 2)).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())


def test_fit_scaling_reaches_every_part(make_model, make_scenes):
    model, scenes = make_model(), make_scenes()
    model.fit_scaling(scenes)
    changes = (scenes.trajectory[:, 1:] - scenes.trajectory[:, :-1]).flatten(0, 2)
    wanted = [float((changes[:, d] ** 2).mean() ** 0.5) for d in range(2)]
    assert model.noise.change_scale.tolist() == pytest.approx(wanted)
    assert model.dynamics.units.change_scale.tolist() == pytest.approx(wanted)
    states = scenes.trajectory.flatten(0, 2)
    scaled = (states - model.scaling.offset) / model.scaling.scale
    assert scaled.amin(0).tolist() == pytest.approx([-1, -1])
    assert scaled.amax(0).tolist() == pytest.approx([1, 1])


def test_prepare(make_model, make_scenes):
    scenes = make_scenes(kinds=3)
    assert make_model().prepare(scenes).trajectory.dtype == torch.double
    assert make_model().float().prepare(scenes).trajectory.dtype == torch.float
    with pytest.raises(ValueError, match="made for state variables x, y, vx, vy, the scenes have x, vx"):
        SceneModel(MessagePassing(2, 4, generator=torch.Generator()), NormalNoise(4), IndependentPrior(2)).prepare(
            scenes
        )
    with pytest.raises(ValueError, match="has 2 kinds of entity, the scenes name 3"):
        make_model(num_entity_kinds=2).prepare(scenes)
    with pytest.raises(ValueError, match="has 2 kinds of entity, the scenes do not name any"):
        make_model(num_entity_kinds=2).prepare(make_scenes())
    other = Scenes.from_arrays(torch.zeros(1, 3, 3, 2), state_names=["a", "b"])
    with pytest.raises(ValueError, match="the scenes have a, b"):
        make_model()(other)


@pytest.mark.parametrize(
    ("prior", "options", "message"),
    [
        (IndependentPrior(3), {}, "prior has 3 edge types, dynamics has 2"),
        (IndependentPrior(2), {"state_names": ("x",)}, "state_names must have 2 entries, found 1"),
        (IndependentPrior(2), {"horizon": 0}, "horizon must be at least 1, found 0"),
        (IndependentPrior(2), {"num_hidden": -1}, "num_hidden must be 0 or more, found -1"),
    ],
)
def test_parts_must_fit(prior, options, message):
    dynamics = MessagePassing(2, 2, generator=torch.Generator())
    with pytest.raises(ValueError, match=message):
        SceneModel(dynamics, NormalNoise(2), prior, **({"state_names": ("x", "vx")} | options))


# --- pair forces -----------------------------------------------------------------------------------------------------
def pair_forces_model(scenes, **options):
    """Scaled on these scenes, with noises that feel the geometry."""
    options = {"num_substeps": 3, "state_names": scenes.state_names} | options
    spec = ModelSpec(2, dynamics="pair-forces", **options)
    model = build_model(spec, torch.Generator().manual_seed(0))
    model.fit_scaling(scenes)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for noise in (model.noise, model.impulse_noise):
            for parameter in noise.parameters():
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.double))
    return model


FORWARD = {
    "normal": ({"noise": "normal"}, {"missing": 0.1}),
    "student_t": ({"noise": "student_t", "prior": "symmetric"}, {"padded": [0, 2]}),
    "geometric": ({}, {"missing": 0.1, "padded": [1]}),
    "shared": ({}, {"groups": ["b", "a", "b", "b"]}),
    "horizon": ({"horizon": 3}, {"num_frames": 8}),
    "one sub-step": ({"num_substeps": 1}, {"missing": 0.1}),
    "boundary": ({"boundary": 2.0, "no_interaction": True}, {}),
    "charges": ({"prior": "charges"}, {}),
}


@pytest.mark.parametrize("name", FORWARD)
def test_forward_density_of_pair_forces_is_the_traced_program(make_scenes, name):
    options, what = FORWARD[name]
    scenes = make_scenes(**({"num_frames": 8} | what))
    model = pair_forces_model(scenes, **options)
    if name == "charges":
        model.prior.set_table(torch.tensor([[1, 0], [0, 1]]))
    structures = prior_draw(model, scenes, 3)
    joint = model.log_joint(scenes, structures)
    assert joint.shape == (3, scenes.num_groups)
    assert joint.isfinite().all()
    for c in range(3):
        trace = poutine.trace(poutine.condition(model, data={"edge_type": structures[c]})).get_trace(scenes)
        assert joint[c].sum().item() == pytest.approx(trace.log_prob_sum().item(), rel=1e-10)
    # the density is that of "forward", whatever the composite likelihood says
    forward = model.likelihood(scenes, kind="forward").log_likelihood(structures)
    torch.testing.assert_close(forward, model.log_likelihood(scenes, structures).detach(), rtol=1e-10, atol=1e-8)


def test_predictions_of_pair_forces(make_scenes):
    scenes = make_scenes()
    model = pair_forces_model(scenes, boundary=4.0)
    torch.manual_seed(0)
    drawn = Predictive(model, num_samples=3)(scenes, condition=False)["trajectory"]
    assert drawn.shape == (3, 4, 4, 3, 2)
    structures = prior_draw(model, scenes, 2)
    found = model.predict(scenes, structures, start=1, num_steps=2)
    state = scenes.trajectory[:, 1]
    for t in range(2):
        state = model.dynamics.step(state, structures[1]).detach()
        torch.testing.assert_close(found[1, :, t], state)


def test_fit_scaling_reaches_the_parts_of_pair_forces(make_scenes):
    scenes = make_scenes(num_frames=12)
    model = build_model(ModelSpec(2, dynamics="pair-forces", state_names=("x", "vx")), torch.Generator().manual_seed(0))
    model.fit_scaling(scenes)
    assert float(model.dynamics.time_step) == float(model.geometry.time_step) == 1.0
    change = (scenes.trajectory[:, 1:, :, 1] - scenes.trajectory[:, :-1, :, 1]).abs().flatten().sort().values
    assert model.impulse_noise.change_scale.item() == pytest.approx(change[(len(change) - 1) // 2].item())
    features = model.dynamics.features(scenes)
    standard = (features.context[features.mask] - model.impulse_noise.context_mean) / model.impulse_noise.context_scale
    torch.testing.assert_close(standard.mean(0), torch.zeros(model.dynamics.context_size).double(), atol=1e-9, rtol=0)
    spread = standard.std(0)
    assert (((spread - 1).abs() < 1e-9) | (spread < 1e-6)).all()  # features that never vary stay as they are


def test_frames_must_be_as_far_apart_as_in_training(make_scenes):
    scenes = make_scenes()
    model = pair_forces_model(scenes)
    other = Scenes.from_arrays(scenes.trajectory, time_step=2.0)
    for call in (model.prepare, model.likelihood, model):
        with pytest.raises(
            ValueError, match="frames of the scenes are 2 apart, the model was trained on frames 1 apart"
        ):
            call(other)
    almost = Scenes.from_arrays(scenes.trajectory, time_step=1 + 1e-9)
    assert model.prepare(almost).num_scenes == 4


def test_impulse_noise_belongs_to_pair_forces():
    generator = torch.Generator().manual_seed(0)
    particles, networks = PairForces(2, ("x", "vx"), generator=generator), MessagePassing(2, 2, generator=generator)
    for dynamics, impulse_noise in ((particles, None), (networks, NormalNoise(1))):
        with pytest.raises(ValueError, match="impulse_noise belongs to pair forces, and they need it"):
            SceneModel(
                dynamics, NormalNoise(2), IndependentPrior(2), state_names=("x", "vx"), impulse_noise=impulse_noise
            )

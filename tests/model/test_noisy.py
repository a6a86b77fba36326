"""The noisy program and its tensor twin; starts and measurements."""

import math

import pyro
import pytest
import torch
from pyro.infer import Predictive
from scipy import stats

from pyro_nri.dynamics.gravity import Gravity
from pyro_nri.dynamics.message_passing import MessagePassing
from pyro_nri.dynamics.rollout import rollout
from pyro_nri.dynamics.scaling import Scaling
from pyro_nri.model.measurement import DirectionMeasurement, MeasurementNoise, StateMeasurement
from pyro_nri.model.noisy import NoisyModel, with_measurement_noise
from pyro_nri.model.orbits import MassPrior, OrbitPrior, OrbitStart
from pyro_nri.model.priors import make_prior
from pyro_nri.model.spec import ModelSpec, build_model
from pyro_nri.model.starts import ScaledStart
from pyro_nri.scenes import edges
from pyro_nri.scenes.scenes import Scenes
from pyro_nri.scenes.simulate import simulate

PLANE = ("x", "y", "vx", "vy")
SPACE = ("x", "y", "z", "vx", "vy", "vz", "gm")


def make_model(num_hidden=1, measurement=None, scale=None, prior="independent"):
    dynamics = MessagePassing(2, 4, generator=torch.Generator().manual_seed(0))
    scaling = Scaling(torch.tensor([0.5, 0.5, 0.0, 0.0]).double(), torch.tensor([2.0, 2.0, 0.3, 0.3]).double())
    measurement = measurement or StateMeasurement(PLANE)
    if scale is None:
        scale = 0.1 * torch.arange(1.0, len(measurement.observed_names) + 1)
    return NoisyModel(
        dynamics,
        make_prior(prior, 2),
        ScaledStart(scaling, num_hidden=num_hidden),
        MeasurementNoise(scale),
        measurement,
    )


def make_scenes(names=PLANE, groups=None):
    """Four scenes of three entities; some frames were not seen and one entity is missing."""
    generator = torch.Generator().manual_seed(1)
    trajectory = torch.randn(4, 6, 3, len(names), generator=generator)
    seen = torch.rand(4, 6, 3, generator=generator) > 0.3
    present = torch.ones(4, 3, dtype=torch.bool)
    if groups is None:
        present[2, 2] = False
    return Scenes.from_arrays(
        trajectory, observation_mask=seen, entity_mask=present, structure_group=groups, state_names=names
    )


def orbits(num_hidden=1):
    known = torch.tensor([[0.1, 0, 0, 0, 0, 0.1, 40], [5, 0, 0, 0, 2.8, 0, 0.04], [0, 0, 0, 0, 0, 0, 0.002]])
    start = OrbitStart(
        known.double(),
        (2,),
        OrbitPrior(19.0, 1.1, 0.05, 0.02),
        hidden_orbit=OrbitPrior(30.0, 1.4, 0.05, 0.02, epoch=12.0),
        hidden_mass=MassPrior(5e-5, 3.0),
        num_hidden=num_hidden,
    )
    return NoisyModel(
        Gravity(SPACE, time_step=1.0),
        make_prior("independent", 2),
        start,
        MeasurementNoise(torch.full((3,), 0.01)),
        DirectionMeasurement(SPACE),
    )


@pytest.mark.parametrize(
    ("model", "names", "groups"),
    [
        (make_model(), PLANE, None),
        (make_model(num_hidden=0), PLANE, None),
        (make_model(num_hidden=2, prior="symmetric"), PLANE, ["a", "b", "a", "c"]),
        (make_model(measurement=StateMeasurement(PLANE, ("x", "y"))), ("x", "y"), None),
        (orbits(), ("dx", "dy", "dz"), ["a", "a", "b", "b"]),
    ],
    ids=["hidden", "nothing hidden", "groups", "positions only", "orbits"],
)
def test_twin_is_the_traced_program(model, names, groups):
    scenes = make_scenes(names, groups)
    pyro.set_rng_seed(3)
    trace = pyro.poutine.trace(model).get_trace(scenes)
    shapes = model.start.shapes(3)
    latents = {name: trace.nodes[name]["value"][None] for name in shapes}
    assert {name: tuple(value.shape[2:]) for name, value in latents.items()} == shapes
    structure = trace.nodes["edge_type"]["value"][None]
    joint = model.log_joint(scenes, structure, latents)
    assert joint.shape == (1, scenes.num_groups)
    assert float(joint.detach().sum()) == pytest.approx(float(trace.log_prob_sum().detach()), rel=1e-12)
    packed = model.pack(latents)
    assert packed.shape == (1, 4, model.num_latents(3))
    for name, value in model.unpack(packed, 3).items():
        assert torch.equal(value, latents[name])
    # Many chains side by side are what each gives alone.
    other = model.unpack(packed + torch.tensor([0.0, 0.1, -0.3])[:, None, None], 3)
    both = model.log_joint(scenes, structure.expand(3, -1, -1), other)
    for chain in range(3):
        alone = model.log_joint(scenes, structure, {name: value[chain : chain + 1] for name, value in other.items()})
        torch.testing.assert_close(both[chain : chain + 1], alone)


def test_log_likelihood_by_hand():
    """One scene, one entity seen at some frames: sums of normal log densities around a rollout."""
    model, scenes = make_model(), make_scenes()
    generator = torch.Generator().manual_seed(5)
    latents = {
        name: torch.randn(1, 4, *shape, generator=generator).double() for name, shape in model.start.shapes(3).items()
    }
    structure = torch.randint(2, (1, 4, 12), generator=generator)
    found = model.log_likelihood(scenes, structure, latents)[0]
    offset, scale = torch.tensor([0.5, 0.5, 0, 0]), torch.tensor([2.0, 2, 0.3, 0.3])
    for b in range(4):
        first = torch.cat([latents["initial_state"][0, b], latents["hidden_state"][0, b]]) * scale + offset
        present = torch.cat([scenes.entity_mask[b], torch.tensor([True])])
        exists = edges.from_matrix(present[:, None] & present)
        path = torch.cat([first[None], rollout(model.dynamics, first, structure[0, b], 5, edge_mask=exists)]).detach()
        total = 0.0
        for t in range(6):
            for n in range(3):
                if scenes.observation_mask[b, t, n]:
                    total += stats.norm(path[t, n], [0.1, 0.2, 0.3, 0.4]).logpdf(scenes.trajectory[b, t, n]).sum()
        assert float(found[b].detach()) == pytest.approx(total, rel=1e-6)


def test_program_draws_recordings_and_conditions():
    model, scenes = make_model(scale=torch.full((4,), 1e-9)), make_scenes(groups=["a"] * 4)
    pyro.set_rng_seed(0)
    drawn = Predictive(model, num_samples=2, parallel=False)(scenes, condition=False)
    assert drawn["trajectory"].shape == (2, 4, 6, 3, 4)
    latents = {name: drawn[name] for name in model.start.shapes(3)}
    path = model.path(scenes, drawn["edge_type"].reshape(2, 1, -1).expand(2, 4, -1), latents)
    torch.testing.assert_close(drawn["trajectory"], path[..., :3, :].detach(), atol=1e-7, rtol=0)
    assert torch.equal(model(scenes), scenes.trajectory)


def test_noisy_program_of_a_trained_model():
    spec = ModelSpec(2, dynamics="pair-forces", boundary=3.0, num_substeps=2)
    trained = build_model(spec, torch.Generator().manual_seed(0))
    scenes = simulate("springs", 3, num_entities=4, num_frames=5, seed=0)
    trained.fit_scaling(scenes)
    model = with_measurement_noise(trained, torch.full((4,), 0.1), num_hidden=1)
    assert not any(each.requires_grad for each in model.parameters())
    assert all(each.requires_grad for each in trained.dynamics.parameters())
    latents = {name: torch.zeros(1, 3, *shape).double() for name, shape in model.start.shapes(4).items()}
    structure = torch.ones(3, 20, dtype=torch.long)
    path = model.path(scenes, structure, latents)
    torch.testing.assert_close(path[0, :, 0], trained.score_offset.double().expand(3, 5, 4))
    first = torch.cat([scenes.trajectory[:, 0], scenes.trajectory[:, 0, :1] + 0.1], 1)
    scaled = (first - trained.score_offset) / trained.score_scale
    latents = {"initial_state": scaled[None, :, :4], "hidden_state": scaled[None, :, 4:]}
    wanted = rollout(trained.dynamics, first, structure, 4).detach()
    torch.testing.assert_close(model.path(scenes, structure, latents)[0, :, 1:], wanted)


def test_noise_is_known_or_learned():
    assert not list(MeasurementNoise(torch.ones(2)).parameters())
    learned = MeasurementNoise(torch.tensor([0.5, 2.0]), learn=True)
    assert [name for name, _ in learned.named_parameters()] == ["log_scale"]
    torch.testing.assert_close(learned.scale.detach(), torch.tensor([0.5, 2.0]))


def test_directions_are_unit_vectors_from_the_origin():
    measurement = DirectionMeasurement(SPACE, origin=1)
    path = torch.randn(2, 5, 4, 7, generator=torch.Generator().manual_seed(0)).double().requires_grad_()
    seen = measurement(path)
    assert measurement.observed_names == ("dx", "dy", "dz")
    apart = path[..., 3, :3] - path[..., 1, :3]
    torch.testing.assert_close(seen[..., 3, :] * apart.norm(dim=-1, keepdim=True), apart)
    assert not seen[..., 1, :].any()
    seen.sum().backward()
    assert path.grad.isfinite().all()


# --- orbits ----------------------------------------------------------------------------------------------------------
@pytest.mark.statistical
@pytest.mark.parametrize("epoch", [0.0, 20.0])
def test_orbit_prior_is_what_it_says(epoch):
    """Uniform longitude, log-normal distance, independent of each other, whatever the epoch."""
    prior = OrbitPrior(30.0, 1.3, 0.05, 0.02, epoch=epoch)
    standard = torch.randn(4000, 6, generator=torch.Generator().manual_seed(0)).double()
    state = prior.state(standard, torch.tensor(39.5).double())
    distance, longitude = state[:, :2].norm(dim=-1), torch.atan2(state[:, 1], state[:, 0])
    assert stats.kstest(longitude, stats.uniform(-math.pi, 2 * math.pi).cdf).pvalue > 1e-3
    assert stats.kstest((distance / 30).log() / math.log(1.3), "norm").pvalue > 1e-3
    assert abs(stats.spearmanr(distance, (longitude - 1).cos()).statistic) < 4 / math.sqrt(4000)
    radial = (state[:, :2] * state[:, 3:5]).sum(-1) / distance / (39.5 / distance).sqrt()
    assert stats.kstest(radial / 0.05, "norm").pvalue > 1e-3
    assert stats.kstest(state[:, 2] / distance / 0.02, "norm").pvalue > 1e-3


def test_longitude_is_that_of_the_epoch():
    """Nearly circular orbits, followed by the integrator without anything else that pulls."""
    prior = OrbitPrior(30.0, 1.3, 0.01, 0.01, epoch=40.0)
    standard = torch.randn(20, 6, generator=torch.Generator().manual_seed(0)).double()
    strength = torch.tensor(39.5).double()
    state = torch.zeros(20, 2, 7).double()
    state[:, 0, 6] = strength
    state[:, 1, :6] = prior.state(standard, strength)
    end = rollout(Gravity(SPACE, time_step=1.0), state, torch.ones(2).long(), 40)[:, -1, 1]
    wanted = torch.atan2(standard[:, 1], standard[:, 0])
    apart = torch.atan2(end[:, 1], end[:, 0]) - wanted
    assert float(torch.remainder(apart + math.pi, 2 * math.pi).sub(math.pi).abs().max()) < 0.01  # of the order of e²
    start = torch.atan2(state[:, 1, 1], state[:, 1, 0]) - wanted
    assert float(torch.remainder(start + math.pi, 2 * math.pi).sub(math.pi).abs().min()) > 0.5


def test_standard_numbers_of_a_circle():
    prior = OrbitPrior(38.8, 1.5, 0.05, 0.02)
    state = prior.state(prior.standard(torch.tensor(2.0).double(), torch.tensor(30.0).double()), torch.tensor(39.5))
    wanted = torch.tensor([30 * math.cos(2), 30 * math.sin(2), 0, 0, 0, 0]).double()
    speed = math.sqrt(39.5 / 30)
    wanted[3:5] = speed * torch.tensor([-math.sin(2), math.cos(2)])
    torch.testing.assert_close(state, wanted)


def test_orbits_start_around_the_centre():
    model = orbits()
    latents = {name: torch.zeros(2, *shape).double() for name, shape in model.start.shapes(3).items()}
    latents["initial_state"][..., 0] = latents["hidden_state"][..., 1] = math.sqrt(2 * math.log(2))  # the median
    latents["hidden_parameter"][1] = 1.0
    state = model.start(latents)
    assert state.shape == (2, 4, 7)
    torch.testing.assert_close(state[0, :2], model.start.known[:2])
    torch.testing.assert_close(state[0, 2, :3], torch.tensor([19.1, 0, 0]).double())
    assert float(state[0, 2, 6]) == pytest.approx(0.002)
    assert float(state[0, 3, :3].norm()) == pytest.approx(30, abs=0.2)
    assert state[:, 3, 6].tolist() == pytest.approx([40 * 5e-5, 40 * 15e-5])


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: make_model().prepare(make_scenes(("a", "b", "c", "d"))), "measures x, y, vx, vy, the scenes have a"),
        (lambda: make_model(scale=torch.ones(3)), "noise must have a scale for each of x, y, vx, vy, found 3"),
        (lambda: MeasurementNoise(torch.tensor([1.0, 0.0])), "scale must be a list of positive"),
        (lambda: StateMeasurement(PLANE, ("z",)), "observed_names must be among x, y, vx, vy, found z"),
        (lambda: DirectionMeasurement(("a", "b")), "state_names must hold positions and their velocities"),
        (lambda: ScaledStart(Scaling(torch.zeros(4), torch.ones(4)), num_hidden=-1), "num_hidden must be 0 or more"),
        (
            lambda: (
                make_model(prior="independent", num_hidden=0)
                and NoisyModel(
                    MessagePassing(3, 4, generator=torch.Generator()),
                    make_prior("independent", 2),
                    make_model().start,
                    make_model().noise,
                    make_model().measurement,
                )
            ),
            "prior has 2 edge types, dynamics has 3",
        ),
        (lambda: OrbitPrior(30.0, 1.0, 0.1, 0.1), "distance_factor above 1"),
        (lambda: MassPrior(0.0, 2.0), "mass must be positive"),
        (
            lambda: OrbitStart(torch.zeros(3, 6), (2,), OrbitPrior(1.0, 2.0, 0.1, 0.1)),
            r"known must have shape \[N, 7\]",
        ),
        (lambda: OrbitStart(torch.zeros(3, 7), (0,), OrbitPrior(1.0, 2.0, 0.1, 0.1)), "latent and centre"),
        (lambda: OrbitStart(torch.zeros(3, 7), (1,), OrbitPrior(1.0, 2.0, 0.1, 0.1), num_hidden=1), "hidden_mass"),
    ],
)
def test_bad_input(make, said):
    with pytest.raises(ValueError, match=said):
        make()

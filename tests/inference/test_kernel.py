"""The kernel under plain ``pyro.infer.MCMC``, against ``infer`` with the same arguments."""

import json

import numpy as np
import pytest
import torch
from pyro.infer import MCMC

from pyro_nri.inference.kernel import StructureKernel
from pyro_nri.inference.run import infer


def run(kernel, scenes, num_samples=12, warmup_steps=0):
    mcmc = MCMC(kernel, num_samples=num_samples, warmup_steps=warmup_steps, disable_progbar=True)
    mcmc.run(scenes)
    return mcmc


@pytest.mark.parametrize("prior", ["independent", "symmetric", "sparse", "charges"])
@pytest.mark.parametrize("num_warmup", [0, 1, 15])
@pytest.mark.parametrize(
    "options", [{"proposal": "uniform"}, {"proposal": "neural"}, {"proposal": "exact"}, {"cache": "messages"}, {}]
)
def test_same_draws_as_infer(make_model, make_scenes, make_encoder, prior, num_warmup, options):
    model, scenes = make_model(prior=prior), make_scenes(padded=[1])
    if prior == "charges":
        model.prior.set_table(torch.tensor([[1, 0], [0, 1]]))
    encoder = make_encoder() if options.get("proposal") == "neural" else None
    both = {"encoder": encoder, "num_chains": 3, "seed": 5, "start_temperature": 7.0, **options}
    mcmc = run(StructureKernel(model, **both), scenes, 12, num_warmup)
    draws = infer(model, scenes, method="mcmc", num_draws=12, num_warmup=num_warmup, **both)
    samples = mcmc.get_samples()["edge_type"]
    assert samples.shape == (12, 3, 3, 6)  # [S, C, G, E]
    assert not samples.is_floating_point()
    assert np.array_equal(samples.swapaxes(0, 1), draws.edge_type)
    assert len({tuple(z.flatten().tolist()) for z in samples}) > 1
    diagnostics = mcmc.kernel.diagnostics()
    assert np.array_equal(diagnostics["log_joint"].swapaxes(0, 1), draws.log_joint)
    assert diagnostics["acceptance_rate"] == pytest.approx(draws.accepted.sum() / draws.proposed.sum())


@pytest.mark.parametrize("likelihood", ["auto", "forward"])
def test_the_density_of_the_program_or_as_far_as_it_is_believed(make_model, make_scenes, likelihood):
    model, scenes = make_model(), make_scenes()
    model.density_power.weight.copy_(torch.tensor([-1.0, -0.2]))
    both = {"likelihood": likelihood, "num_chains": 2, "seed": 3}
    mcmc = run(StructureKernel(model, **both), scenes)
    samples, found = mcmc.get_samples()["edge_type"], mcmc.kernel.diagnostics()["log_joint"]
    draws = infer(model, scenes, method="mcmc", num_draws=12, num_warmup=0, **both)
    assert np.array_equal(found.swapaxes(0, 1), draws.log_joint)
    with torch.no_grad():
        program = torch.stack([model.log_joint(scenes, structure) for structure in samples])
    agrees = torch.isclose(found, program, rtol=1e-4, atol=1e-2)
    assert bool(agrees.all() if likelihood == "forward" else not agrees.any())


def test_longer_horizons(make_model, make_scenes):
    model, scenes = make_model(horizon=3), make_scenes(groups=["a", "b", "a"])
    samples = run(StructureKernel(model, num_chains=2, seed=0), scenes, 6, 4).get_samples()["edge_type"]
    draws = infer(model, scenes, method="mcmc", num_chains=2, num_draws=6, num_warmup=4, seed=0)
    assert samples.shape == (6, 2, 2, 6)
    assert np.array_equal(samples.swapaxes(0, 1), draws.edge_type)


def test_setup_twice_equals_once(make_model, make_scenes):
    scenes, kernels = make_scenes(), [StructureKernel(make_model(), seed=1) for _ in range(2)]
    kernels[0].setup(3, scenes)
    kernels[1].setup(3, scenes)
    for _ in range(7):
        kernels[1].sample(kernels[1].initial_params)
    kernels[1].setup(3, scenes)
    assert kernels[1].diagnostics()["acceptance_rate"] == 0
    assert len(kernels[1].diagnostics()["log_joint"]) == 0
    for _ in range(8):
        one, two = (kernel.sample(kernel.initial_params)["edge_type"] for kernel in kernels)
        assert torch.equal(one, two)


def test_running_again_gives_the_same(make_model, make_scenes):
    scenes, kernel = make_scenes(), StructureKernel(make_model(), seed=1)
    first = run(kernel, scenes).get_samples()["edge_type"]
    assert torch.equal(run(kernel, scenes).get_samples()["edge_type"], first)


def test_a_kernel_used_for_other_scenes_starts_anew(make_model, make_scenes):
    model, kernel = make_model(), StructureKernel(make_model(), seed=1, num_chains=2)
    run(kernel, make_scenes(num_scenes=3))
    other = make_scenes(num_scenes=2, num_entities=4, seed=8)
    samples = run(kernel, other).get_samples()["edge_type"]
    draws = infer(model, other, method="mcmc", num_chains=2, num_draws=12, num_warmup=0, seed=1)
    assert np.array_equal(samples.swapaxes(0, 1), draws.edge_type)


def test_initial_params_set_before_setup_are_kept(make_model, make_scenes):
    kernel = StructureKernel(make_model(), num_chains=2, proposal="uniform", seed=1)
    start = torch.ones(2, 3, 6, dtype=torch.long)
    kernel.initial_params = {"edge_type": start}
    kernel.setup(0, make_scenes())
    assert torch.equal(kernel.initial_params["edge_type"], start)
    after = kernel.sample(kernel.initial_params)["edge_type"]
    assert (after != start).sum(-1).max() <= 2  # one edge or one pair at most
    assert torch.equal(start, torch.ones(2, 3, 6, dtype=torch.long))


def test_initial_params_exist_after_setup(make_model, make_scenes):
    kernel = StructureKernel(make_model(), num_chains=4, seed=1)
    assert kernel.initial_params is None
    kernel.setup(0, make_scenes())
    start = kernel.initial_params["edge_type"]
    assert start.shape == (4, 3, 6)
    assert len(set(map(tuple, start.flatten(1).tolist()))) == 4  # over-dispersed


def test_logging_is_plain_and_diagnostics_a_dict(make_model, make_scenes):
    kernel = StructureKernel(make_model(), seed=1)
    kernel.setup(2, make_scenes())
    assert isinstance(kernel.diagnostics(), dict)
    for _ in range(4):
        kernel.sample(kernel.initial_params)
        json.dumps(kernel.logging())
    assert kernel.diagnostics()["log_joint"].shape == (2, 4, 3)  # warm-up is left out
    assert type(kernel.diagnostics()["acceptance_rate"]) is float
    assert kernel.transforms == {}
    kernel.cleanup()
    kernel.cleanup()


def test_sample_before_setup(make_model):
    with pytest.raises(ValueError, match="setup must be called with scenes before sample"):
        StructureKernel(make_model(), seed=0).sample({})


def test_open_priors_are_refused(make_model, make_scenes):
    with pytest.raises(ValueError, match="the prior is open: training did not choose its table"):
        StructureKernel(make_model(prior="charges"), seed=0).setup(0, make_scenes())


def test_no_global_random_numbers(make_model, make_scenes):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    run(StructureKernel(make_model(), seed=0), make_scenes(), 5, 5)
    assert torch.equal(torch.get_rng_state(), before)

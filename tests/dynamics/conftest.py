"""Pair forces whose laws are known functions, planted as splines."""

import math

import pytest
import torch

from pyro_nri.dynamics.pair_forces import PairForces


@pytest.fixture
def plant():
    def plant(laws, *forces, low=0.05, high=20.0):
        """Fit the splines to functions ``f(r)`` between two distances, or ``f(angle)``, by least squares."""
        if not laws.circular:
            laws.low.fill_(math.log(low))
            laws.high.fill_(math.log(high))
        points = laws.points()
        index, weight = laws.basis(points)
        basis = torch.zeros(len(points), laws.splines.shape[1], dtype=torch.double).scatter_add(1, index, weight)
        values = torch.stack([force(points) * (1 if laws.circular else points) for force in forces], -1)
        laws.set_splines(torch.linalg.lstsq(basis, values.double()).solution.T)

    return plant


@pytest.fixture
def make_pair_forces(plant):
    def make(*forces, state_names=("x", "y", "vx", "vy"), time_step=0.1, low=0.05, high=20.0, **options):
        """Float64 pair forces with the laws ``forces``; the walls are those of the option ``boundary``."""
        options = {"boundary": "none"} | options
        generator = torch.Generator().manual_seed(0)
        made = PairForces(len(forces), state_names, generator=generator, **options).double()
        plant(made.laws, *forces, low=low, high=high)
        made.time_step.fill_(time_step)
        if not isinstance(made.boundary, str):
            made.low.fill_(-made.boundary)
            made.high.fill_(made.boundary)
        return made

    return make

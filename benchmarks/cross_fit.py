"""Training and inferring on the same five scenes: how right and how sure, with and without cross-fitting.

    python benchmarks/cross_fit.py [--smoke] [--num-scenes 5] [--num-frames 49 10] [--windows 49 10] [--work FOLDER]

Pair forces, independent prior, no labels; a data set of 5 scenes for each seed. Rows:

- "double use": one model is trained on the 5 scenes, the same 5 are inferred.
- "cross-fit": 5 folds; each of the 5 scenes is inferred by the model of the other 4.
- "single, new": the first model infers 200 scenes that no model saw.
- "ensemble, new": 5 models from bootstrap resamples of the 5 scenes infer them.
- "folds, new": the 5 models of the folds infer them, each having seen 4 of the 5 scenes.

Models learn from scenes of each of ``--num-frames`` frames; scenes are inferred from the first frames of each window
that is not longer. Type labels are those of the first model's own training scenes. Rows with seed "all" pool the edges
of all seeds, with 95 % intervals over scenes. ``--work`` keeps models and probabilities, so that an interrupted run
goes on.
"""

import argparse
import itertools
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from pyro_nri.cross_fitting import cross_fit, fit_ensemble
from pyro_nri.fitting import fit
from pyro_nri.inference.run import infer
from pyro_nri.learning.checkpoint import Checkpoint, Ensemble, load_model, save_checkpoint
from pyro_nri.learning.mixtures import infer_ensemble
from pyro_nri.model.spec import ModelSpec
from pyro_nri.posterior.align import aligned_probability
from pyro_nri.posterior.scores import score_edges
from pyro_nri.scenes.scenes import Scenes
from pyro_nri.scenes.simulate import simulate

NUM_MODELS = 5
SCORES = ("edge_accuracy", "expected_accuracy", "ece", "log_score", "brier")
SCENES_AT_ONCE = 50
SYSTEMS = ("charged", "springs")


def learned(path: Path, learn: Callable[..., Any], **arguments: Any) -> Any:
    """The model of a file, or what ``learn`` makes and keeps there; an interrupted training goes on."""
    if path.exists():
        return load_model(path)
    unfinished = path.with_suffix(".unfinished")
    resume = load_model(unfinished) if unfinished.exists() else None

    def save(model: Checkpoint | Ensemble) -> None:
        save_checkpoint(model, unfinished)

    model = learn(**arguments, resume=resume, save=save, save_every=10.0)
    save_checkpoint(model, path)
    unfinished.unlink()
    return model


def inferred(path: Path, model: Checkpoint | Ensemble, scenes: Scenes, window: int) -> np.ndarray:
    """Edge probabilities in the labels of the truth from the first frames, ``[G, E, K]``; kept in parts."""
    parts = []
    for start in range(0, scenes.num_scenes, SCENES_AT_ONCE):
        kept = path.with_name(f"{path.name}_{start}.npy")
        if not kept.exists():
            some = scenes[start : start + SCENES_AT_ONCE]
            if isinstance(model, Ensemble):
                options: dict[str, Any] = {"fingerprints": some.fingerprints, "num_draws": 1, "seed": 0}
                draws = infer_ensemble(model, some.frames(0, window), **options)
            else:
                draws = infer(model.model, some.frames(0, window), num_draws=1, seed=0)
            assert draws.edge_probability is not None
            assert model.alignment is not None
            np.save(kept, aligned_probability(draws.edge_probability, model.alignment, 2))
        parts.append(np.load(kept))
    return np.concatenate(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="two scenes and a few steps, to see that it runs")
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--num-scenes", type=int, default=5)
    parser.add_argument("--num-new", type=int, default=200)
    parser.add_argument("--num-frames", nargs="+", type=int, default=[49, 10], help="frames to learn from")
    parser.add_argument("--windows", nargs="+", type=int, default=[49, 10], help="first frames to infer from")
    parser.add_argument("--num-steps", type=int, default=300)
    parser.add_argument("--num-threads", type=int, default=1)
    parser.add_argument("--work", type=Path, help="folder that keeps models and probabilities")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    if arguments.smoke:
        arguments.num_scenes, arguments.num_new, arguments.num_frames = 2, 2, [8]
        arguments.windows, arguments.num_steps, arguments.seeds, arguments.systems = [8], 4, [0], ["springs"]
    torch.set_num_threads(arguments.num_threads)
    with tempfile.TemporaryDirectory() as folder:
        work = arguments.work or Path(folder)
        work.mkdir(parents=True, exist_ok=True)
        frame = measure(arguments, work)
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / ("cross_fit_smoke.csv" if arguments.smoke else "cross_fit.csv")
    frame.to_csv(path, index=False, float_format="%.6g")
    pooled = frame[frame["seed"] == "all"].drop(columns=["seed", "num_edges"])
    print(pooled[[name for name in pooled if not name.endswith(("_low", "_high"))]].to_string(index=False))
    print(f"wrote {path}")


def measure(arguments: argparse.Namespace, work: Path) -> pd.DataFrame:
    num_entities = 3 if arguments.smoke else 5
    num_models = 2 if arguments.smoke else NUM_MODELS
    found: dict[tuple[str, int, int, str], list[tuple[np.ndarray, np.ndarray]]] = {}
    for num_frames, system in itertools.product(arguments.num_frames, arguments.systems):
        for seed in arguments.seeds:
            size = {"num_entities": num_entities, "num_frames": num_frames}
            few = simulate(system, arguments.num_scenes, seed=seed + 1, **size)
            new = simulate(system, arguments.num_new, seed=seed + 1001, **size)
            own = work / f"{system}_{seed}_{num_frames}"
            own.mkdir(exist_ok=True)
            spec = ModelSpec(num_edge_types=2, dynamics="pair-forces", state_names=few.state_names)
            shared = {"scenes": few, "spec": spec, "num_steps": arguments.num_steps, "seed": seed}
            single = learned(own / "single.pt", fit, law_bootstrap=0, **shared)
            folds = learned(own / "folds.pt", cross_fit, num_folds=arguments.num_scenes, **shared)
            ensemble = learned(own / "ensemble.pt", fit_ensemble, num_models=num_models, **shared)
            settings = {
                "double use": (single, few),
                "cross-fit": (folds, few),
                "single, new": (single, new),
                "ensemble, new": (ensemble, new),
                "folds, new": (folds, new),
            }
            agreement = [min(models.training["agreement"]) for models in (folds, ensemble)]
            print(f"{system}, {num_frames} frames, seed {seed}: lowest agreement of models {agreement}", flush=True)
            for window in (window for window in arguments.windows if window <= num_frames):
                for name, (model, scenes) in settings.items():
                    path = own / f"{name.replace(', ', '_').replace(' ', '_')}_{window}"
                    probability = inferred(path, model, scenes, window)
                    assert scenes.edge_type is not None
                    found.setdefault((system, num_frames, window, name), []).append(
                        (probability, scenes.edge_type.numpy())
                    )
    rows = []
    for (system, num_frames, window, name), parts in found.items():
        seeds = [*map(str, arguments.seeds), "all"]
        joined = tuple(np.concatenate(values) for values in zip(*parts, strict=True))
        for seed, (probability, truth) in zip(seeds, [*parts, joined], strict=True):
            scene = np.repeat(np.arange(len(truth)), truth.shape[1])
            flat = probability.reshape(-1, probability.shape[-1])
            score = score_edges(flat, truth.ravel(), scene, alignment=range(flat.shape[1]))
            row = {
                "system": system,
                "learned_frames": num_frames,
                "inferred_frames": window,
                "setting": name,
                "seed": seed,
            }
            row["num_edges"] = score["num_edges"]
            for quantity in SCORES:
                row[quantity] = score[quantity]["value"]
                if seed == "all":
                    row[f"{quantity}_low"], row[f"{quantity}_high"] = score[quantity]["low"], score[quantity]["high"]
            rows.append(row)
    return pd.DataFrame(rows)


if __name__ == "__main__":
    main()

"""Imports run one way, in the order of the lists below; a new file names its place here."""

import ast
import json
import re
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = "pyro_nri"
MAX_LINES = 400
VAGUE_NAMES = {"util", "utils", "helper", "helpers", "common", "misc"}

# A file may import from the folders above its own, and from the files to the left of it in its own folder.
ORDER: dict[str, Sequence[str]] = {
    "version.py": [],
    "scenes": [
        "edges",
        "isomorphism",
        "checks",
        "scenes",
        "hidden_entities",
        "batches",
        "files",
        "tables",
        "systems",
        "particles",
        "oscillators",
        "nri_arrays",
        "phase_features",
        "netcdf",
        "readers",
        "simulate",
        "velocities",
    ],
    "dynamics": [
        *["modules", "scaling", "dynamics", "message_passing", "force_laws", "impulses", "walls", "pair_motion"],
        *[
            "recorded_noise",
            "pair_forces",
            "gravity",
            "hidden_paths",
            "integrated_paths",
            "reference_search",
            "rollout",
        ],
    ],
    "model": [
        *["labelings", "structures", "priors", "geometry", "noise", "trajectory", "relaxed", "receivers", "direct"],
        *[
            "propagation",
            "impulse_cache",
            "impulse_power",
            "impulse",
            "plates",
            "power",
            "program",
            "surrogate",
            "hidden",
            "hidden_motion",
            "spec",
            "measurement",
            "starts",
        ],
        *["orbits", "noisy"],
    ],
    "inference": [
        *[
            "streams",
            "draws",
            "scene_chunks",
            "exact",
            "incoming",
            "encoder",
            "schedules",
            "metropolis",
            "target",
            "moves",
            "labels",
            "balanced",
            "rounds",
            "particle_gibbs",
            "propagated",
            "blocks",
            "trees",
            "learned",
            "delayed",
        ],
        *[
            "proposals",
            "gauss_newton",
            "block_tridiagonal",
            "laplace",
            "mala",
            "noisy_modes",
            "noisy_chains",
            "noisy_structures",
            "population",
            "hidden_edges",
            "hidden_search",
            "hidden_scan",
            "hidden",
            "noisy_guess",
            "noisy_joint",
            "hidden_smoothing",
            "hidden_draws",
            "hidden_integral",
            "hidden_rough",
            "hidden_chaotic",
            "tempering",
            "evidence",
            "chains",
            "kernel",
            "run",
            "hidden_run",
            "hidden_find",
            "noisy_search",
            "noise_scale",
            "noisy_run",
            "heldout",
        ],
    ],
    "learning": [
        *[
            "checkpoint",
            "objectives",
            "pace",
            "bouncegrad",
            "law_regression",
            "law_continuation",
            "integrator",
            "laws",
            "law_bootstrap",
        ],
        *["calibration", "chance", "agreement", "distill", "matching", "mixtures"],
    ],
    "baselines": [
        *["baseline", "training", "static", "lstm", "correlation", "encoders", "supervised"],
        *["relaxation", "decoders", "variational", "refinement", "graphs", "rows"],
    ],
    "posterior": [
        *[
            "replicas",
            "hidden",
            "recorded",
            "prior_records",
            "recordings",
            "sample_stats",
            "convert",
            "same_recordings",
            "parts",
            "storage",
            "align",
            "probability",
            "bootstrap",
            "ranking",
            "truth",
            "diagnostics",
            "hidden_frames",
            "states",
            "convergence",
            "scores",
            "rollout_errors",
            "calibration",
            "correspondence",
            "permutation",
            "intervals",
            "compare",
            "distances",
            "distinct",
            "motifs",
            "exact_receivers",
            "pool",
            "tilting",
            "quantities",
            "patterns",
            "comparison_table",
            "subsets",
            "groups",
            "covariates",
            "comparison",
            "frames",
            "uncertainty",
            "inclusion",
            "graph_statistics",
            "predictions",
            "forecasts",
        ],
        *[
            "laws",
            "halves",
            "objections",
            "selection",
            "marginals",
            "paths",
            "figures",
            "plots",
            "hidden_plots",
            "law_plots",
            "edge_plots",
            "calibration_plots",
        ],
        *["chain_plots", "track_plots", "sections", "hidden_section", "recorded_section", "report"],
    ],
    "presets.py": [],
    "fitting.py": [],
    "rivals.py": [],
    "studies.py": [],
    "cross_fitting.py": [],
    "demo.py": [],
    "answers.py": [],
    "comparisons.py": [],
    "observations.py": [],
    "commands.py": [],
    "results.py": [],
    "arguments.py": [],
    "cli.py": [],
    "__main__.py": [],
}


def violations(package: Path, order: Mapping[str, Sequence[str]]) -> list[str]:
    """One sentence for each broken rule in the package folder ``package``."""
    found = []
    for path in sorted(package.rglob("*.py")):
        name = path.relative_to(package)
        for part in (*name.parent.parts, name.stem):
            if part in VAGUE_NAMES:
                found.append(f"{name}: '{part}' says nothing; name the file after its one noun")
        if (num_lines := len(path.read_text().splitlines())) > MAX_LINES:
            found.append(f"{name}: {num_lines} lines, {MAX_LINES} at most; a second noun wants its own file")
        if name.parts == ("__init__.py",):
            continue  # the front door may import everything
        own = place(name.with_suffix("").parts, order)
        if own is None:
            found.append(f"{name}: not in ORDER of tests/test_layers.py; name its place there")
            continue
        for line, target in sorted(set(internal_imports(path, package))):
            if not target:
                found.append(
                    f"{name}:{line}: imports from {package.name}/__init__; import from the file that defines it"
                )
            elif (other := place(target, order)) is None:
                found.append(
                    f"{name}:{line}: imports {'.'.join(target)}, which is not in ORDER of tests/test_layers.py"
                )
            elif other >= own:
                found.append(f"{name}:{line}: imports {'.'.join(target)}, which does not stand above it")
    return found


def place(parts: Sequence[str], order: Mapping[str, Sequence[str]]) -> tuple[int, int] | None:
    """Rank of a module's folder and of the module in it; a folder's ``__init__`` comes last in it; None: not listed."""
    folders = [folder.removesuffix(".py") for folder in order]
    if parts[0] not in folders:
        return None
    rank = folders.index(parts[0])
    is_file = f"{parts[0]}.py" in order
    if is_file or len(parts) > 2:
        return (rank, 0) if is_file and len(parts) == 1 else None
    files = [*order[parts[0]], "__init__"]
    inside = parts[1] if len(parts) == 2 else "__init__"
    return (rank, files.index(inside)) if inside in files else None


def internal_imports(path: Path, package: Path) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Line and target (module path inside the package, () for its ``__init__``) of each import of the package's own."""

    def inside(module: str) -> tuple[str, ...] | None:
        parts = tuple(module.split("."))
        return parts[1:] if parts[0] == package.name else None

    for node in ast.walk(ast.parse(path.read_text())):  # imports inside functions and under TYPE_CHECKING too
        if isinstance(node, ast.Import):
            targets = [inside(alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:
                above = path.relative_to(package.parent).parts[: -node.level]
                module = ".".join([*above, *([module] if module else [])])
            start = inside(module)
            targets = [start if start is None else from_target(start, alias.name, package) for alias in node.names]
        elif isinstance(node, ast.Call) and is_dynamic_import(node):
            targets = [inside(node.args[0].value)]  # type: ignore[attr-defined]
        else:
            continue
        yield from ((node.lineno, target) for target in targets if target is not None)


def from_target(start: tuple[str, ...], name: str, package: Path) -> tuple[str, ...]:
    """What ``from start import name`` imports: the file ``start/name`` if there is one, else ``start`` itself."""
    deeper = package.joinpath(*start, name)
    is_module = deeper.is_dir() or deeper.with_suffix(".py").is_file()
    return (*start, name) if start and is_module else start


def is_dynamic_import(node: ast.Call) -> bool:
    """Whether the call is ``import_module("...")`` or ``__import__("...")`` with the name written out."""
    function = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    literal = bool(node.args) and isinstance(node.args[0], ast.Constant) and isinstance(node.args[0].value, str)
    return function in ("import_module", "__import__") and literal


def test_imports_run_one_way():
    found = violations(ROOT / PACKAGE, ORDER)
    if found:
        pytest.fail("\n".join(found), pytrace=False)


# --- the checker finds what it is there for --------------------------------------------------------------------------
SMALL_ORDER = {"low": ["first", "second"], "high": ["third"], "cli.py": []}
ALLOWED = {
    "__init__.py": "from small.high.third import c\n",
    "low/__init__.py": "from small.low.first import a\n",
    "low/first.py": "import torch\na = 1\n",
    "low/second.py": "from small.low import first\nfrom small.low.first import a\nfrom . import first",
    "high/__init__.py": "",
    "high/third.py": "import small.low.second\nfrom small.low import a\nfrom ..low import second\nc = 1\n",
    "cli.py": "from small.high.third import c\nfrom small.high import third\n",
}
FORBIDDEN = {
    "upwards": ("low/first.py", "from small.low.second import b", "imports low.second, which does not stand above it"),
    "upwards by its folder": ("low/first.py", "from small.low import second", "imports low.second, which does not"),
    "upwards, relative": ("low/first.py", "from .second import b", "imports low.second, which does not stand above it"),
    "upwards in a function": (
        "low/first.py",
        "def f():\n    import small.high.third",
        "first.py:2: imports high.third",
    ),
    "upwards by name": (
        "low/first.py",
        "importlib.import_module('small.high.third')",
        "imports high.third, which does",
    ),
    "folder above": ("low/second.py", "from small.high import third", "imports high.third, which does not stand above"),
    "folder above, relative": ("low/second.py", "from ..high import third", "imports high.third, which does not stand"),
    "itself": ("low/first.py", "from small.low.first import a", "imports low.first, which does not stand above it"),
    "own __init__": ("low/second.py", "from small.low import a", "imports low, which does not stand above it"),
    "front door": ("high/third.py", "from small import c", "imports from small/__init__"),
    "front door, plain": ("high/third.py", "import small", "imports from small/__init__"),
    "front door, relative": ("high/third.py", "from .. import c", "imports from small/__init__"),
    "front door, folder": ("high/third.py", "from small import low", "imports from small/__init__"),
    "command line": ("high/third.py", "from small.cli import main", "imports cli, which does not stand above it"),
    "unlisted target": ("high/third.py", "import small.low.new", "imports low.new, which is not in ORDER"),
    "unlisted file": ("low/new.py", "", "new.py: not in ORDER of tests/test_layers.py; name its place there"),
    "unlisted folder": ("other/first.py", "", "first.py: not in ORDER of tests/test_layers.py; name its place there"),
    "unlisted depth": ("low/first/deep.py", "", "deep.py: not in ORDER of tests/test_layers.py; name its place there"),
    "vague file": ("low/utils.py", "", "utils.py: 'utils' says nothing"),
    "vague folder": ("common/first.py", "", "'common' says nothing"),
    "long file": ("low/first.py", "\n" * (MAX_LINES + 1), f"first.py: {MAX_LINES + 1} lines, {MAX_LINES} at most"),
}


@pytest.fixture
def small(tmp_path):
    for name, text in ALLOWED.items():
        write(tmp_path / "small" / name, text)
    return tmp_path / "small"


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_checker_allows_what_runs_one_way(small):
    write(small / "low/first.py", "\n" * MAX_LINES)
    assert violations(small, SMALL_ORDER) == []


@pytest.mark.parametrize("rule", FORBIDDEN)
def test_checker_finds(small, rule):
    name, text, sentence = FORBIDDEN[rule]
    write(small / name, text)
    assert any(sentence in found for found in violations(small, SMALL_ORDER)), violations(small, SMALL_ORDER)


# --- what the package asks of its surroundings -----------------------------------------------------------------------
def test_every_imported_package_is_a_declared_dependency():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    requirements = project["dependencies"] + project["optional-dependencies"]["parquet"]
    declared = {re.split(r"[<>=!~\[; ]", requirement)[0].lower() for requirement in requirements}
    distributions = packages_distributions()
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            modules = []
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                modules = [node.module or ""]
            for top in {module.split(".")[0] for module in modules} - sys.stdlib_module_names - {PACKAGE}:
                providers = {name.lower() for name in distributions.get(top, [top])}
                where = f"{path.relative_to(ROOT)}:{node.lineno}"
                assert providers & declared, f"{where}: imports {top}, which pyproject.toml does not declare"


def test_importing_changes_nothing_global():
    """Every module is imported; seeds, defaults, validation, warnings and the parameter store stay as they were."""
    script = """
        import importlib, json, logging, os, pkgutil, random, sys, warnings
        warnings.filterwarnings("ignore", r"\\s*ArviZ is undergoing a major refactor", FutureWarning)
        import arviz, arviz_base, h5netcdf, matplotlib.pyplot, numpy, pandas, pyro, scipy.stats, torch, tqdm, xarray
        import pyro.infer, pyro.optim, pyro.distributions, pyro.nn

        def state():
            return {
                "default dtype": str(torch.get_default_dtype()),
                "default device": str(torch.get_default_device()),
                "torch validation": torch.distributions.Distribution._validate_args,
                "pyro settings": repr(sorted(pyro.settings.get().items(), key=lambda item: item[0])),
                "parameter store": sorted(pyro.get_param_store().keys()),
                "torch seed": torch.get_rng_state().tolist(),
                "numpy seed": repr(numpy.random.get_state()),
                "python seed": repr(random.getstate()),
                "numpy errors": numpy.geterr(),
                "gradients": torch.is_grad_enabled(),
                "deterministic": torch.are_deterministic_algorithms_enabled(),
                "threads": torch.get_num_threads(),
                "warnings": [repr(entry) for entry in warnings.filters],
                "matplotlib": repr(dict(matplotlib.rcParams)),
                "pandas": repr(pandas.describe_option(_print_desc=False)),
                "xarray": repr(sorted(xarray.get_options().items())),
                "log handlers": repr(logging.getLogger().handlers),
                "environment": dict(os.environ),
            }

        before = state()
        import pyro_nri
        for module in pkgutil.walk_packages(pyro_nri.__path__, "pyro_nri."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
        after = state()
        print(json.dumps({name: [before[name], after[name]] for name in before if before[name] != after[name]}))
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout.splitlines()[-1]) == {}

"""The page says what the posterior deserves, holds everything it needs, and looks whole in a browser."""

import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser

import matplotlib as mpl
import numpy as np
import pytest
import torch

from pyro_nri.dynamics.force_laws import NUM_SPLINES
from pyro_nri.inference.run import infer
from pyro_nri.learning.checkpoint import new_checkpoint
from pyro_nri.model.spec import ModelSpec
from pyro_nri.posterior import sections
from pyro_nri.posterior.calibration import OVER, UNDER
from pyro_nri.posterior.convert import to_datatree
from pyro_nri.posterior.report import judge, report_html, seen_twice, write_report
from pyro_nri.scenes.simulate import simulate

mpl.use("Agg")
BROWSER = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)


@pytest.fixture(autouse=True)
def _coarse(monkeypatch):
    """Small pictures are quick ones."""
    monkeypatch.setattr(sections, "_DPI", 40)


class Page(HTMLParser):
    """Texts, sources, links and anchors of a page; fails where tags do not close."""

    VOID = ("meta", "img", "br", "link", "input")

    def __init__(self, text):
        super().__init__()
        self.words, self.sources, self.links, self.anchors, self.alternatives, self.open = [], [], [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.sources += [found[name] for name in ("src", "srcset", "data") if name in found]
        self.links += [found["href"]] if "href" in found else []
        self.anchors += [found["id"]] if "id" in found else []
        self.alternatives += [found["alt"]] if tag == "img" else []
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def honest(make_tree, make_scenes, *, sharpen=1.0, num_scenes=60):
    """Exact probabilities from which the truth was drawn, reported sharper than they are."""
    rng = np.random.default_rng(0)
    probability = rng.dirichlet([0.4, 0.4], (num_scenes, 6))
    truth = (rng.random(probability.shape[:2]) < probability[..., 1]).astype(int)
    told = probability**sharpen / (probability**sharpen).sum(-1, keepdims=True)
    edge_type = rng.random((2, 20, num_scenes, 6)) < told[..., 1]
    scenes = make_scenes(num_scenes, edge_type=truth)
    return make_tree(edge_type, scenes, edge_probability=told, method="exact", type_alignment=[0, 1])


# --- verdicts --------------------------------------------------------------------------------------------------------
def test_an_honest_posterior_is_trusted(make_tree, make_scenes):
    page, verdict = report_html(honest(make_tree, make_scenes), num_replicates=100)
    assert verdict == ("trust", "Nothing was found that speaks against this posterior.", ())
    text = Page(page).text
    assert "Nothing says that this posterior is over- or under-confident" in text
    assert "given the learned modules" in text
    assert "Draws of an enumerated posterior are independent" in text


@pytest.mark.parametrize(("sharpen", "direction"), [(3, OVER), (0.3, UNDER)])
def test_a_boastful_posterior_is_called_so(make_tree, make_scenes, sharpen, direction):
    page, verdict = report_html(honest(make_tree, make_scenes, sharpen=sharpen), num_replicates=100)
    assert verdict.status == "care"
    assert verdict.sentence == f"Take these probabilities with care: they are {direction}."
    assert f"This posterior is {direction}" in verdict.reasons[0]
    assert Page(page).text.count(f"This posterior is {direction}") == 2  # at the top, and beside the table


def test_chains_in_different_modes_are_not_trusted(make_tree, make_scenes):
    edge_type = np.random.default_rng(0).integers(0, 2, (2, 400, 2, 6))
    edge_type[0, :, 1], edge_type[1, :, 1] = [0, 1, 0, 1, 0, 1], [1, 0, 1, 0, 1, 0]
    page, verdict = report_html(make_tree(edge_type, make_scenes(2, edge_type=None)))
    assert verdict.status == "not"
    assert verdict.sentence == "Do not trust this posterior yet."
    assert verdict.reasons[0].startswith("In 1 of 2 scenes chains sit in different modes: scene 1 has chains 0 | 1")
    text = Page(page).text
    assert "parallel tempering: infer(num_replicas=8)" in text
    assert "points off the line are edges that chains do not agree about" in text
    assert "Against the truth" not in text


def test_one_draw_is_not_trusted(make_tree):
    _, verdict = report_html(make_tree(np.zeros((2, 1, 1, 6), np.int8)), num_replicates=10)
    assert verdict.status == "not"
    assert "1 draw is too few to diagnose, 4 are needed." in verdict.reasons


def test_a_posterior_that_is_its_prior_is_told(make_tree, make_scenes):
    edge_type = np.random.default_rng(0).integers(0, 2, (2, 500, 3, 6))
    _, verdict = report_html(make_tree(edge_type, make_scenes(edge_type=None)))
    assert verdict.status == "care"
    assert verdict.reasons[0].startswith("The structure explains next to nothing")


def test_convergence_comes_first(make_tree, make_scenes):
    from pyro_nri.posterior.calibration import calibration
    from pyro_nri.posterior.convergence import check

    tree = honest(make_tree, make_scenes, sharpen=3)
    run, judged = check(tree), calibration(tree, num_replicates=50)
    failed = replace(run, passed=False, problems=("Chains disagree.",))
    assert judge(failed, judged, []).reasons == ("Chains disagree.", judged.verdict)
    assert judge(failed, judged, []).status == "not"
    assert judge(run, None, []).status == "trust"


# --- the page --------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def whole():
    """Every section: chains, laws, predictions of later frames, scores."""
    scenes = simulate("springs", 6, num_entities=3, num_frames=16, seed=0)
    checkpoint = new_checkpoint(ModelSpec(2, dynamics="pair-forces"), seed=0)
    checkpoint.model.dynamics.time_step.fill_(scenes.time_step)
    checkpoint.model.dynamics.laws.set_splines(0.01 * torch.tensor([[1.0], [-1.0]]).expand(2, NUM_SPLINES))
    seen = scenes.frames(0, 8)
    draws = infer(checkpoint.model, seen, method="mcmc", num_chains=2, num_draws=40, num_warmup=10, seed=0)
    attributes = {"command": "pyro-nri infer a<b.nc", "model": "m&m.pt"}
    tree = to_datatree(draws, seen, attributes=attributes)
    options = {"checkpoint": checkpoint, "truth": scenes, "commands": ["pyro-nri report p.nc"], "num_replicates": 20}
    return tree, options


@pytest.fixture(scope="module")
def written(whole, tmp_path_factory):
    """The page as a file, and its verdict."""
    tree, options = whole
    path = tmp_path_factory.mktemp("report") / "report.html"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sections, "_DPI", 90)
        return path, write_report(tree, path, scenes=["4", "1"], title="Springs & <more>", **options)


def test_the_page_needs_nothing_else_and_says_all(written):
    path, verdict = written
    text = path.read_text()
    page = Page(text)
    assert [each.name for each in path.parent.iterdir()] == ["report.html"]
    assert page.sources
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert all(page.alternatives)
    assert {link.removeprefix("#") for link in page.links} <= set(page.anchors)
    assert re.findall(r"https?:|@import|url\(|<script|<link", text) == []
    for words in (
        *("What was asked", "Did the computation converge?", "Structures", "Learned laws", "Predictions"),
        *("Against the truth", "How to make it again", "Springs & <more>", verdict.sentence),
        *("pyro-nri infer a<b.nc pyro-nri report p.nc", "m&m.pt", "Scenes 4, 1: probability that the edge"),
        *("8 (0 to 7)", "pair-forces", "frame 7, the last one seen, over 8 frames that were not"),
    ):
        assert words in page.text, words
    assert "nan" not in page.text.lower().split()


def test_structures_that_do_not_help_to_predict_are_told(whole):
    """Its laws are not those of springs: no structure explains anything."""
    tree, options = whole
    page, warning = sections.predictions(tree, options["checkpoint"], options["truth"], "0")
    assert warning.startswith("The structure does not help to predict")
    assert warning in page.paragraphs
    page, _ = sections.predictions(tree, options["checkpoint"], None, "0")
    assert "over 4 frames that the structures were inferred from too" in page.paragraphs[0]


def test_training_scenes_are_told(whole):
    tree, options = whole
    seen = replace(options["checkpoint"], training_scenes=options["truth"].fingerprints[:2])
    assert "trained on 2 of these scenes" in seen_twice(tree, seen, options["truth"])
    assert seen_twice(tree, seen, None) is None  # what was seen of them is not the whole of them
    assert seen_twice(tree, options["checkpoint"], options["truth"]) is None


def test_bad_input(make_tree, whole):
    tree, _ = whole
    with pytest.raises(ValueError, match="the posterior holds no draw, at least one is needed for a report"):
        report_html(make_tree(np.zeros((2, 0, 1, 6), np.int8)))
    with pytest.raises(ValueError, match="the posterior has no scene '9'"):
        report_html(tree, scenes=["9"])


# --- in a browser ----------------------------------------------------------------------------------------------------
PROBE = """<script>addEventListener('load', () => {
  const images = [...document.images], wanted = performance.getEntriesByType('resource').map(e => e.name);
  document.body.setAttribute('data-probe', [
    images.length, images.filter(i => i.complete && i.naturalWidth > 300 && i.clientWidth > 100).length,
    document.documentElement.scrollWidth - document.documentElement.clientWidth,
    wanted.filter(name => !name.startsWith('data:')).length,
    getComputedStyle(document.querySelector('.verdict')).borderLeftColor,
  ].join(';'));
});</script></body>"""


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no browser is installed")
@pytest.mark.parametrize("width", [1200, 500])
def test_in_a_browser(written, tmp_path, width):
    """Every picture loads, nothing is asked of a network, and the page is no wider than the window."""
    page = written[0].read_text()
    path = tmp_path / "probed.html"
    path.write_text(page.replace("</body>", PROBE))
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--host-resolver-rules=MAP * ~NOTFOUND", f"--window-size={width},900", "--dump-dom", path.as_uri()]
    out = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    (probe,) = re.findall(r'data-probe="([^"]*)"', out)
    num_images, num_loaded, too_wide, num_asked, border = probe.split(";")
    assert int(num_images) == int(num_loaded) == len(Page(page).sources) > 5
    assert (int(too_wide), int(num_asked)) == (0, 0)
    assert border == "rgb(213, 94, 0)"

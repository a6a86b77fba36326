"""The code blocks of the tutorial run as they stand, one after the other, with a shorter training."""

import re
from pathlib import Path

import matplotlib as mpl
import pytest

from pyro_nri.posterior import sections

TUTORIAL = Path(__file__).parent.parent / "docs" / "tutorial.md"
SHORTER = {"num_steps=300": "num_steps=30", "num_draws=500, num_warmup=500": "num_draws=100, num_warmup=100"}


@pytest.mark.slow
def test_blocks_of_the_tutorial_run(tmp_path, monkeypatch, capsys):
    import matplotlib.pyplot as plt

    mpl.use("Agg")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(mpl.rcParams, "savefig.dpi", 40)
    monkeypatch.setattr(sections, "_DPI", 40)
    text = TUTORIAL.read_text()
    for long, short in SHORTER.items():
        assert text.count(long) == 1
        text = text.replace(long, short)
    names: dict = {}
    for block in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL):
        exec(block, names)
        plt.close("all")
    told = capsys.readouterr().out
    assert "Scenes(40 scenes, 49 frames, 3 entities" in told
    assert names["run"].verdict in told
    assert names["judged"].verdict in told
    assert names["verdict"].sentence in told
    assert len(names["edges"]) == 10 * 6 * 2
    assert names["every"].equals(names["wide"])
    assert names["again"].shape == names["edges"].shape
    pictures = re.findall(r'savefig\("(\w+\.png)"\)', text)
    assert len(pictures) == len(set(pictures)) >= 9
    for name in (*pictures, "model.pt", "posterior.nc", "edges.csv", "predictions.csv", "report.html"):
        assert (tmp_path / name).stat().st_size > 500, name

"""The code blocks of the README run as they stand, on a table of three entities."""

import re
from pathlib import Path

import matplotlib
import pytest

from pyro_nri.scenes.simulate import simulate
from pyro_nri.scenes.tables import to_dataframe

SHORTER = {
    "num_steps=300": "num_steps=30",
    '"auto", seed=0': "1, num_draws=50, seed=0",
    "new = scenes[1::2]": "new = scenes[1:2]",
}
README = Path(__file__).parent.parent / "README.md"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # ArviZ divides 0 by 0 where nothing moves
def test_blocks_of_the_readme_run(tmp_path, monkeypatch):
    matplotlib.use("Agg")
    monkeypatch.chdir(tmp_path)
    to_dataframe(simulate("springs", 40, num_entities=3, seed=3)).to_csv("trajectories.csv", index=False)
    for name, linked in (("control", 0.2), ("treated", 0.8)):
        group = simulate("springs", 16, num_entities=3, seed=4 + int(10 * linked), link_probability=linked)
        to_dataframe(group).to_csv(f"{name}.csv", index=False)
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    assert len(blocks) == 5
    assert len([line for line in blocks[0].splitlines() if line.strip()]) <= 10
    names: dict = {}
    for block in blocks:
        for long, short in SHORTER.items():
            block = block.replace(long, short)
        exec(block, names)
    edges = names["edges"]
    assert list(edges.columns[:5]) == ["scene", "sender", "receiver", "edge_type", "probability"]
    assert len(edges) == 10 * 6 * 2
    assert edges.groupby(["scene", "sender", "receiver"])["probability"].sum().to_numpy() == pytest.approx(1)
    assert (tmp_path / "posterior.nc").is_file()
    assert (tmp_path / "graphs.png").is_file()
    density = names["comparison"].query("quantity == 'density' and type == 1").iloc[0]
    assert {density["group_a"], density["group_b"]} == {"control", "treated"}
    assert names["numbers"]["probability"].tolist() == [1.0]
    assert set(names["where"]["entity"]) == {"hidden 1"}

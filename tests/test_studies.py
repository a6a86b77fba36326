import os
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import pandas as pd
import pytest

from pyro_nri import studies
from pyro_nri.posterior.frames import read_frame, write_frame
from pyro_nri.studies import run_cells

WANTED = [{"kind": kind, "seed": seed} for kind in ("a", "b") for seed in range(3)]


def refuse(cell):
    raise AssertionError("a finished cell was run again")


@pytest.mark.parametrize("jobs", [1, 2])
def test_only_what_is_missing_is_run(tmp_path, monkeypatch, jobs):
    monkeypatch.setattr(studies, "ProcessPoolExecutor", lambda jobs, mp_context: ThreadPoolExecutor(jobs))
    path = tmp_path / "table.csv"

    def work(cell):
        return [] if cell == {"kind": "b", "seed": 1} else [{**cell, "value": 0.1 * cell["seed"]}]

    run_cells(path, WANTED, work, jobs=jobs)
    table = read_frame(path)  # one of them broke down, and is the only one that is tried again
    assert table[["kind", "seed"]].to_dict("records") == [cell for cell in WANTED if work(cell)]
    tried = []
    found = run_cells(path, WANTED, lambda cell: tried.append(cell) or [{**cell, "value": 0.1}])
    assert tried == [{"kind": "b", "seed": 1}]
    assert found[["kind", "seed"]].to_dict("records") == WANTED
    assert len(read_frame(path)) == len(WANTED)


def test_an_interrupted_study_keeps_what_was_finished(tmp_path):
    path = tmp_path / "table.csv"

    def work(cell):
        if cell["kind"] == "b":
            raise KeyboardInterrupt
        return [{**cell, "value": 1 / 3, "part": part} for part in ("x", "y")]

    with pytest.raises(KeyboardInterrupt):
        run_cells(path, WANTED, work)
    assert len(read_frame(path)) == 2 * 3
    found = run_cells(path, WANTED[:3], refuse)  # the same to the last digit
    assert found.to_dict("records") == [row for cell in WANTED[:3] for row in work(cell)]


def test_a_slow_cell_keeps_no_other_waiting(tmp_path, monkeypatch):
    monkeypatch.setattr(studies, "ProcessPoolExecutor", lambda jobs, mp_context: ThreadPoolExecutor(jobs))
    path, others_written = tmp_path / "table.csv", Event()

    def work(cell):
        assert cell != WANTED[0] or others_written.wait(60)  # the first is the last to finish
        return [{**cell, "value": 1.0}]

    def write(table, path):
        write_frame(table, path)
        if len(table) == len(WANTED) - 1:
            assert table[["kind", "seed"]].to_dict("records") == WANTED[1:]
            others_written.set()

    monkeypatch.setattr(studies, "write_frame", write)
    found = run_cells(path, WANTED, work, jobs=2)
    assert others_written.is_set()
    assert found[["kind", "seed"]].to_dict("records") == read_frame(path)[["kind", "seed"]].to_dict("records") == WANTED


def test_after_a_failure_no_other_cell_is_begun(tmp_path, monkeypatch):
    monkeypatch.setattr(studies, "ProcessPoolExecutor", lambda jobs, mp_context: ThreadPoolExecutor(1))
    tried = []

    def work(cell):
        tried.append(cell)
        raise KeyError("broken")

    with pytest.raises(KeyError):
        run_cells(tmp_path / "table.csv", WANTED * 20, work, jobs=2)
    assert len(tried) < len(WANTED) * 20


def test_what_is_under_way_when_one_fails_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(studies, "ProcessPoolExecutor", lambda jobs, mp_context: ThreadPoolExecutor(jobs))
    path, begun, failed = tmp_path / "table.csv", Event(), Event()

    def work(cell):
        if cell == WANTED[0]:
            assert begun.wait(60)
            failed.set()
            raise KeyError("broken")
        begun.set()
        assert failed.wait(60)
        return [{**cell, "value": 1.0}]

    with pytest.raises(KeyError):
        run_cells(path, WANTED[:2], work, jobs=2)
    assert read_frame(path)[["kind", "seed"]].to_dict("records") == [WANTED[1]]


def test_nothing_is_written_of_cells_that_all_failed(tmp_path):
    path = tmp_path / "table.csv"
    assert len(run_cells(path, WANTED, lambda cell: [])) == 0
    assert not path.exists()
    assert len(run_cells(path, WANTED, lambda cell: [{**cell, "value": 1.0}])) == len(WANTED)


def test_rows_of_other_cells_stay(tmp_path):
    path = tmp_path / "table.csv"
    write_frame(pd.DataFrame([{"seed": 7, "value": 1.5}]), path)
    found = run_cells(path, [{"seed": 8}], lambda cell: [{**cell, "value": 2.5, "more": "m"}])
    assert found.to_dict("records") == [{"seed": 8, "value": 2.5, "more": "m"}]
    assert read_frame(path)["seed"].tolist() == [7, 8]


@pytest.mark.slow
def test_a_script_with_processes(tmp_path):
    """Rows come back in the order of the cells, whichever process is first."""
    script = f"""
        from pathlib import Path
        from pyro_nri.studies import run_cells

        def work(cell):
            return [{{**cell, "value": 2 * cell["seed"]}}]

        if __name__ == "__main__":
            run_cells(Path({str(tmp_path)!r}) / "table.csv", [{{"seed": seed}} for seed in (3, 1, 2)], work, jobs=2)
    """
    path = tmp_path / "script.py"
    path.write_text(textwrap.dedent(script))
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    subprocess.run([sys.executable, path], env=environment, check=True, capture_output=True)
    assert read_frame(tmp_path / "table.csv")["value"].tolist() == [6, 2, 4]

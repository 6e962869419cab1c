"""The notebooks run from top to bottom, and are committed without what they print and draw."""

from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason='the notebooks need the extra: pip install "dexcore[docs]"')
nbclient = pytest.importorskip("nbclient", reason='the notebooks need the extra: pip install "dexcore[docs]"')

NOTEBOOKS = sorted((Path(__file__).parents[2] / "examples" / "notebooks").glob("*.ipynb"))


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request):
    read = nbformat.read(request.param, as_version=4)
    nbformat.validate(read)
    return read


def test_a_notebook_is_committed_without_outputs(notebook):
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)


@pytest.mark.slow
def test_a_notebook_runs_and_draws(notebook, tmp_path, monkeypatch):
    monkeypatch.delenv("MPLBACKEND", raising=False)  # the kernel's own, which keeps the pictures
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    client = nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()  # an error in a cell is raised
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 3

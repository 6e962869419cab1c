"""Every code block of README and docs runs, or says why not; what marks mean stands in `pages`."""

import pickle
from pathlib import Path

import pytest
from pages import Block, PageError, blocks_of, run_page

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def not_run():
    """(place, reason) of every block that is not run; a page that cannot be read fails in its own test."""
    for page in PAGES:
        try:
            blocks = blocks_of(page)
        except PageError:
            continue
        for block in blocks:
            if block.not_run:
                yield f"{page.relative_to(ROOT)}:{block.line}", block.not_run


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_block_of_a_page_runs_in_order(page, tmp_path):
    run_page(page, tmp_path)


@pytest.mark.parametrize(("place", "reason"), list(not_run()))
def test_a_block_that_is_not_run_says_why(place, reason):
    pytest.skip(f"{place} is not run: {reason}")  # pytest's summary lists it


@pytest.fixture
def made(tmp_path):
    """A page of this text, and an empty folder to run it in."""

    def make(text):
        page, folder = tmp_path / "page.md", tmp_path / "folder"
        page.write_text(text)
        folder.mkdir()
        return page, folder

    return make


def test_the_blocks_of_a_page_share_a_namespace_and_an_empty_folder(made):
    page, folder = made(
        "Text.\n\n<!-- setup\nimport os\nassert os.listdir() == []\na = 1\n-->\n\n"
        "```python\nb = a + 1\nopen('b.txt', 'w').write(str(b))\n```\n\n"
        '- in a list\n\n    ```python title="c.py"\n    if b == 2:\n        open("c.txt", "w").close()\n    ```\n'
    )
    before = Path.cwd()
    run_page(page, folder)
    assert sorted(path.name for path in folder.iterdir()) == ["b.txt", "c.txt"]
    assert (folder / "b.txt").read_text() == "2"
    assert Path.cwd() == before


def test_what_a_page_defines_can_be_pickled(made):
    page, folder = made(
        "```python\nimport pickle\nclass Thing: pass\nwith open('thing', 'wb') as file:\n"
        "    pickle.dump(Thing(), file)\nassert type(pickle.load(open('thing', 'rb'))) is Thing\n"
        "assert __name__ == '__main__'\n```\n"
    )
    run_page(page, folder)
    with pytest.raises(AttributeError):  # and the class is gone with the page
        pickle.loads((folder / "thing").read_bytes())


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("# A\n\n```python\nx = 1\nassert x == 2, 'no'\n```\n", 5, "AssertionError: no"),
        ("```python\ndef f():\n    raise KeyError('k')\n```\n\n```python\nf()\n```\n", 3, "KeyError: 'k'"),
        ("```python\nx = 1\ny = = 2\n```\n", 3, "SyntaxError"),
        ("<!-- setup\nx = missing\n-->\n", 2, "NameError"),
        ("```python\nraise SystemExit(0)\n```\n", 2, "SystemExit: 0"),
        ("a\n\n<!-- run -->\n```bash\necho told\nfalse\n```\n", 5, "exit status 1\ntold"),
    ],
)
def test_a_block_that_fails_names_page_and_line(made, text, line, message):
    page, folder = made(text)
    with pytest.raises(PageError) as caught:
        run_page(page, folder)
    assert str(caught.value).startswith(f"{page}:{line}: {message}")


def test_a_block_after_not_run_is_listed_with_its_reason_and_not_run(made):
    page, folder = made(
        "<!-- not run: needs\n     a GPU -->\n\n```python\nraise RuntimeError\n```\n\n```python\nx = 1\n```\n"
        "```bash\nfalse\n```\n```text\nno code\n```\n"
    )
    run_page(page, folder)
    assert blocks_of(page) == [
        Block("python", "raise RuntimeError", 5, "needs a GPU"),
        Block("python", "x = 1", 9),
        Block("bash", "false", 12, "a shell command"),
    ]


def test_a_marked_shell_block_runs_with_the_python_of_the_tests(made):
    page, folder = made("<!-- run -->\n```bash\npython -c 'import torch; print(torch.__version__)' > version\n```\n")
    run_page(page, folder)
    assert (folder / "version").read_text().strip()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\n<!-- not run: -->\n```python\n```\n", ":2: 'not run' wants its reason"),
        ("<!-- not run -->\n```python\n```\n", ":1: 'not run' wants its reason"),
        ("<!-- not run: a GPU -->\nText.\n", ":2: 'a GPU' stands before this line, not before a code block"),
        ("<!-- run -->\n", ": 'run' at the end, with no code block after it"),
        ("<!-- run -->\n```yaml\na: 1\n```\n", ":2: 'run' stands before a block that is neither Python nor shell"),
        ("<!-- setup x = 1 -->\n", ":1: nothing else may stand in the line of <!-- setup"),
        ("<!-- setup\nx = 1\n", ":1: the comment does not end"),
        ("text\n```python\nx = 1\n", ":2: the code block does not end"),
    ],
)
def test_a_mark_that_means_nothing_is_refused(made, text, message):
    page, _ = made(text)
    with pytest.raises(PageError) as caught:
        blocks_of(page)
    assert str(caught.value).startswith(f"{page}{message}")

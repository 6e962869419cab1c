"""The code blocks of a Markdown page: found, and run in order as a reader would.

```python                  run; all Python blocks of a page share one namespace and one empty working folder
```bash                    not run, but where ``<!-- run -->`` stands before it
<!-- setup                 Python up to the end of the comment: run at this place, not shown to the reader
<!-- not run: REASON -->   the block that follows is not run, and is listed with the reason
"""

import os
import re
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

COMMENT = re.compile(r"<!--(.*?)-->", re.DOTALL)
FENCE = re.compile(r"( *)(`{3,}|~{3,}) *([\w-]*)")
PYTHON, SHELL = ("python", "py"), ("bash", "sh", "shell", "console")


class PageError(AssertionError):
    """A page that cannot be read as above, or a block of it that fails; names page and line."""


@dataclass(frozen=True)
class Block:
    """``line``: of the code's first line in the page; ``not_run``: why, where it is not run."""

    language: str  # "python" or "bash"
    code: str
    line: int
    not_run: str = ""


def blocks_of(page: Path) -> list[Block]:
    """All Python and shell blocks of a page, in order; set-up comments are Python blocks.

    Raises:
        PageError: a fence or comment that does not end, ``not run`` without a reason, a mark with no block after it.
    """
    lines = page.read_text(encoding="utf-8").splitlines()
    blocks: list[Block] = []
    mark = ""  # the comment that speaks of the next block
    number = 0
    while number < len(lines):
        if fence := FENCE.match(lines[number]):
            indent, ticks, language = fence.groups()
            end = number + 1
            while end < len(lines) and not re.fullmatch(rf" *{ticks[0]}{{{len(ticks)},}} *", lines[end]):
                end += 1
            if end == len(lines):
                raise PageError(f"{page}:{number + 1}: the code block does not end")
            code = textwrap.dedent("\n".join(line.removeprefix(indent) for line in lines[number + 1 : end]))
            if language in PYTHON:
                blocks.append(Block("python", code, number + 2, "" if mark == "run" else mark))
            elif language in SHELL:
                blocks.append(Block("bash", code, number + 2, "" if mark == "run" else mark or "a shell command"))
            elif mark:
                raise PageError(f"{page}:{number + 1}: '{mark}' stands before a block that is neither Python nor shell")
            mark, number = "", end + 1
        elif lines[number].lstrip().startswith("<!--"):
            found = COMMENT.search("\n".join(lines[number:]))
            if found is None:
                raise PageError(f"{page}:{number + 1}: the comment does not end")
            text = found[1]
            if re.match(r"\s*setup\b", text):
                first, _, code = text.partition("\n")
                if first.strip() != "setup":
                    raise PageError(f"{page}:{number + 1}: nothing else may stand in the line of <!-- setup")
                blocks.append(Block("python", textwrap.dedent(code), number + 2))
            elif re.match(r"\s*not run\b", text):
                mark = " ".join(text.strip().removeprefix("not run").lstrip(":").split())
                if not mark:
                    raise PageError(f"{page}:{number + 1}: 'not run' wants its reason: <!-- not run: REASON -->")
            elif text.strip() == "run":
                mark = "run"
            number += text.count("\n") + 1
        else:
            if mark and lines[number].strip():
                raise PageError(f"{page}:{number + 1}: '{mark}' stands before this line, not before a code block")
            number += 1
    if mark:
        raise PageError(f"{page}: '{mark}' at the end, with no code block after it")
    return blocks


def run_page(page: Path, folder: Path) -> None:
    """Run what a page runs, in the empty ``folder``; tracebacks show the page's own lines.

    Raises:
        PageError: from what the first failing block raised.
    """
    module = ModuleType("__main__")  # what a page defines can be pickled, as in a script
    before, folder_before = sys.modules["__main__"], Path.cwd()
    sys.modules["__main__"] = module
    os.chdir(folder)
    try:
        for block in blocks_of(page):
            if not block.not_run:
                (_run_python if block.language == "python" else _run_shell)(page, block, module)
    finally:
        os.chdir(folder_before)
        sys.modules["__main__"] = before


def _run_python(page: Path, block: Block, module: ModuleType) -> None:
    try:
        code = compile("\n" * (block.line - 1) + block.code, str(page), "exec")
        exec(code, module.__dict__)
    except (Exception, SystemExit) as error:
        line = block.line
        if isinstance(error, SyntaxError) and error.filename == str(page):
            line = error.lineno or line
        trace = error.__traceback__
        while trace is not None:  # the last line of the page that was running
            if trace.tb_frame.f_code.co_filename == str(page):
                line = trace.tb_lineno
            trace = trace.tb_next
        raise PageError(f"{page}:{line}: {type(error).__name__}: {error}") from error


def _run_shell(page: Path, block: Block, module: ModuleType) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = ["bash", "-euo", "pipefail", "-c", block.code]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PATH": path})
    if done.returncode:
        raise PageError(f"{page}:{block.line}: exit status {done.returncode}\n{done.stdout}{done.stderr}")

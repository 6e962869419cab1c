"""What MkDocs does beside its plugins: equations to MathML, and files of the repository that the pages show.

Pages are written so that GitHub shows them too: equations in ``$...$`` or a ``math`` block, pictures by their path in
the repository.
"""

import re
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
CODE = re.compile(r"^( *)(`{3,})(.*?)^\1\2 *$|`[^`\n]+`", re.DOTALL | re.MULTILINE)
INLINE = re.compile(r"\$(?=\S)([^$\n]+?)(?<=\S)\$")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The measurements' pictures as results/, and the list of changes as a page: neither has a second copy in git."""
    for picture in sorted((ROOT / "bench" / "results").glob("*.png")):
        files.append(File.generated(config, f"results/{picture.name}", abs_src_path=str(picture)))
    files.append(File.generated(config, "changelog.md", abs_src_path=str(ROOT / "CHANGELOG.md")))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Equations as MathML, which browsers draw without a script; other code stays as it is."""
    parts, end = [], 0
    for code in CODE.finditer(markdown):
        parts.append(_inline(markdown[end : code.start()]))
        language, _, text = (code[3] or "").partition("\n")
        parts.append(_block(text) if language.strip() == "math" else code[0])
        end = code.end()
    parts.append(_inline(markdown[end:]))
    return "".join(parts).replace("](../bench/results/", "](results/")


def _inline(text: str) -> str:
    # In a span: Markdown takes a line that begins with <math> for a block.
    return INLINE.sub(lambda found: f"<span>{convert(found[1])}</span>", text)


def _block(latex: str) -> str:
    return f'<div class="equation">{convert(latex.strip(), display="block")}</div>'

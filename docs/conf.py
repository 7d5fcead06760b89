"""Sphinx: the pages of this folder, one page a claim from its docstring, the reference from the docstrings, the gallery from examples/."""

import importlib
import re
import sys
from pathlib import Path
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))  # verification is not installed with the library

project, author, copyright = "linconv", "The linconv developers", "The linconv developers"  # Sphinx's name
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx_gallery.gen_gallery"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
exclude_patterns = ["build", "examples", "**/GALLERY_HEADER.rst", "sg_execution_times.rst", "auto_examples/sg_execution_times.rst"]
default_role = "code"
autodoc_typehints = "none"  # signatures would show beartype's view of the shapes; the docstrings state them
autodoc_member_order = "bysource"
html_theme = "alabaster"
html_theme_options = {"description": "Whether statements about linear CNNs are true", "page_width": "1100px", "fixed_sidebar": True}
html_math_renderer = "mathml"
sphinx_gallery_conf = {
    "examples_dirs": "examples",
    "gallery_dirs": "auto_examples",
    "filename_pattern": "/plot_",
    "within_subsection_order": "FileNameSortKey",
    "show_memory": False,
    "min_reported_time": 10**6,
    "download_all_examples": False,
    "abort_on_example_error": True,
}
nitpicky = False


def write_claims(_: Sphinx) -> None:
    """docs/claims/NAME.md for each claim of `verification`: its docstring, its command, its parameters."""
    from linconv.claims.subject import subject_of
    from verification.__main__ import claims

    folder = HERE / "claims"
    folder.mkdir(exist_ok=True)
    wanted = {f"{name}.md": claim_page(name, subject_of(importlib.import_module(f"verification.{name}").claim)) for name in claims()}
    wanted["index.md"] = "# Claims\n\n```{toctree}\n" + "\n".join(name.removesuffix(".md") for name in wanted) + "\n```\n"
    for path in folder.glob("*.md"):
        if path.name not in wanted:
            path.unlink()
    for name, text in wanted.items():
        path = folder / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def claim_page(name: str, subject: Any) -> str:
    first, *rest = re.split(r"\n\s*\n", subject.statement)
    paragraphs = [re.sub(r"^\$\$(.*?)\$\$", r"$$\n\1\n$$", p, flags=re.DOTALL) for p in rest]
    flags = [p for p in subject.parameters.values() if p.domain.is_flag]
    rows = [f"| `{p.flag}` | {p.domain.describe()} | `{p.default}` | {p.help} |" for p in flags]
    table = ["| flag | domain | default | |", "|---|---|---|---|", *rows]
    kind = "A theorem." if subject.kind == "theorem" else "An empirical claim: an observation with an interval, no theorem."
    parts = [f"# {name}", f"**{' '.join(first.split())}**", *paragraphs, kind, f"```\npython -m verification.{name}\n```", "\n".join(table)]
    pages = [page for page in (HERE / f"{name}.md", HERE / f"{name.replace('_', '-')}.md") if page.exists()]
    parts += [f"More: [{page.stem}](../{page.name})" for page in pages]
    return "\n\n".join(parts) + "\n"


def docstring_to_rst(_: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """The docstrings of this project are plain text with `code` and $formulas$, which reStructuredText reads otherwise."""
    text = "\n".join(lines)
    blocks = re.split(r"(\n\s*\n)", text)
    lines[:] = "".join(block if block.lstrip().startswith(">>>") else _paragraph(block) for block in blocks).split("\n")


def _paragraph(block: str) -> str:
    display = re.sub(r"\$\$(.*?)\$\$", lambda m: f"\n\n.. math:: {' '.join(m[1].split())}\n\n", block, flags=re.DOTALL)
    pieces = re.split(r"(`[^`]+`|\$[^$]+\$|\.\. math::.*)", display)
    return "".join(_piece(piece) for piece in pieces)


def _piece(piece: str) -> str:
    if piece.startswith("`"):
        return f"``{piece.strip('`')}``"
    if piece.startswith("$"):
        return f":math:`{piece.strip('$')}`"
    return piece if piece.startswith(".. math::") else re.sub(r"([\\|_`]|\*(?! ))", r"\\\1", piece)


def inline_math(translator: HTML5Translator, node: nodes.math) -> None:
    translator.body.append(convert(node.astext()))
    raise nodes.SkipNode


def display_math(translator: HTML5Translator, node: nodes.math_block) -> None:
    translator.body.append(f'<div class="math">{convert(node.astext(), display="block")}</div>')
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    app.add_html_math_renderer("mathml", (inline_math, None), (display_math, None))
    app.connect("builder-inited", write_claims)
    app.connect("autodoc-process-docstring", docstring_to_rst)

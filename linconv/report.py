"""Verdicts as documents: one page of HTML that needs nothing else, and LaTeX for a paper.

Both are made from the JSON of verdicts (`python -m verification --json FILE`), so that a page can be made again without running anything.
Statements are the docstrings of the claims: paragraphs with formulas between dollar signs.
"""

import base64
import html
import re
import unicodedata
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from linconv.claims.output import brief
from linconv.claims.verdict import REPRODUCE, counted

PREAMBLE = "% needs amsmath, amssymb, booktabs\n"
ACCENTS = {"\u0302": r"\hat", "\u0304": r"\bar", "\u0303": r"\tilde", "\u0307": r"\dot"}
Document = Mapping[str, Any]


def page(documents: Sequence[Document], *, exit_code: int, figures: Mapping[str, Sequence[Path]] | None = None) -> str:
    """One self-contained page: a table of verdicts, then each claim with statement, scope, checks, controls, figures, versions and seed.

    `documents`, JSON of verdicts, each with `kind` beside its fields; `figures`, PNG files by the name of the claim, which are embedded.
    Nothing is loaded from anywhere, and the page forbids the browser to. Raises `ValueError` for a document that is no verdict.
    """
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters |= {"brief": brief, "number": number, "counted": counted}
    template = environment.from_string(resources.files("linconv").joinpath("report.html").read_text(encoding="utf-8"))
    claims = [_prepared(document, (figures or {}).get(str(document.get("claim")), ())) for document in documents]
    counts: dict[str, int] = {}
    for claim in claims:
        counts[claim["verdict"]] = counts.get(claim["verdict"], 0) + 1
    summary = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
    return template.render(title="Verdicts of linconv", summary=f"{len(claims)} claims: {summary}.", exit_code=exit_code, claims=claims)


def _prepared(document: Document, figures: Sequence[Path]) -> dict[str, Any]:
    from markupsafe import Markup

    if not {"claim", "verdict", "reason"} <= set(document):
        raise ValueError(f"documents: expected the JSON of a verdict, got one with {', '.join(document) or 'nothing'}; use its --json")
    empty: dict[str, Any] = {
        "kind": "theorem",
        "statement": "",
        "scope": "",
        "seconds": 0.0,
        "seed": None,
        "witness": None,
        "null_model": None,
    }
    lists: dict[str, Any] = {"checks": [], "controls": [], "notes": [], "parameters": {}, "versions": {}}
    claim = empty | lists | dict(document)
    claim["why"], _, claim["again"] = claim["reason"].partition(REPRODUCE)  # a command is copied whole, without the full stop of a sentence
    claim["statement_html"] = Markup(statement_html(claim["statement"]))  # made of escaped text and MathML below
    claim["figures"] = [{"name": path.stem, "data": base64.b64encode(path.read_bytes()).decode()} for path in figures]
    return claim


def statement_html(statement: str) -> str:
    """Paragraphs of escaped text, with MathML for formulas and <code> for names between backquotes.

    >>> statement_html("For `a` < $x$.")
    '<p>For <code>a</code> &lt; <math xmlns="http://www.w3.org/1998/Math/MathML" display="inline"><mrow><mi>x</mi></mrow></math>.</p>'
    """
    from latex2mathml.converter import convert

    paragraphs = []
    for paragraph in re.split(r"\n\s*\n", statement.strip()):
        pieces = []
        for kind, text in _pieces(paragraph):
            if kind == "text":
                pieces.append(re.sub(r"`+([^`]+)`+", r"<code>\1</code>", html.escape(" ".join(text.split(" ")))))
            else:
                pieces.append(convert(text.strip(), display="block" if kind == "display" else "inline"))
        paragraphs.append("<p>" + "".join(pieces) + "</p>")
    return "\n".join(paragraphs)


def _pieces(paragraph: str) -> list[tuple[str, str]]:
    """Text, inline and displayed formulas, in order."""
    found = []
    for i, outer in enumerate(paragraph.split("$$")):
        if i % 2:
            found.append(("display", outer))
            continue
        found += [("inline" if j % 2 else "text", inner) for j, inner in enumerate(outer.split("$")) if inner]
    return found


def latex(documents: Sequence[Document]) -> str:
    """A table of the verdicts, a row a claim, then every statement: for a paper that loads amsmath, amssymb and booktabs.

    >>> print(latex([{"claim": "shift_law", "verdict": "HOLDS", "scope": "sampled, 5 draws", "reason": "", "statement": "It holds."}]))
    % needs amsmath, amssymb, booktabs
    \\begin{tabular}{llp{0.55\\linewidth}}
    \\toprule
    claim & verdict & scope or reason \\\\
    \\midrule
    shift\\_law & HOLDS & sampled, 5 draws \\\\
    \\bottomrule
    \\end{tabular}
    <BLANKLINE>
    \\paragraph{shift\\_law.} It holds.
    <BLANKLINE>
    """
    rows = [f"{_tex(d['claim'])} & {_tex(d['verdict'])} & {_tex(d.get('scope') or d['reason'])} \\\\" for d in documents]
    head = ["\\begin{tabular}{llp{0.55\\linewidth}}", "\\toprule", "claim & verdict & scope or reason \\\\", "\\midrule"]
    table = "\n".join([*head, *rows, "\\bottomrule", "\\end{tabular}\n"])
    statements = [f"\\paragraph{{{_tex(d['claim'])}.}} {statement_latex(d['statement'])}\n" for d in documents if d.get("statement")]
    return PREAMBLE + "\n".join([table, *statements])


def statement_latex(statement: str) -> str:
    """The statement as it is in its formulas, its text with every special character written out."""
    written = {"text": "{}", "inline": "${}$", "display": "\\[{}\\]"}
    return "".join(written[kind].format(_tex(text) if kind == "text" else _formula(text)) for kind, text in _pieces(statement.strip()))


def _tex(text: str) -> str:
    from pylatexenc.latexencode import UnicodeToLatexEncoder  # type: ignore[import-untyped]  # has no stubs

    encoder = UnicodeToLatexEncoder(
        unknown_char_policy="unihex", unknown_char_warning=False, replacement_latex_protection="braces-after-macro"
    )
    pieces = re.split(r"(.[\u0302\u0303\u0304\u0307])", unicodedata.normalize("NFD", text))
    return "".join(
        f"\\ensuremath{{{ACCENTS[piece[1]]}{{{encoder.unicode_to_latex(piece[0])}}}}}"
        if len(piece) == 2 and piece[1] in ACCENTS
        else encoder.unicode_to_latex(unicodedata.normalize("NFC", piece)).replace("--", "-{}-")  # two hyphens of a flag, not a dash
        for piece in pieces
    )


def _formula(text: str) -> str:
    """A formula, in which a Greek letter or a sign may stand as itself."""
    return "".join(c if c.isascii() else re.sub(r"^\\ensuremath\{(.*)\}$", r"\1 ", _tex(c)) for c in text)


def number(value: Any) -> str:
    """A size as a table shows it; NaN and infinity are words in JSON."""
    if isinstance(value, str):
        return {"Infinity": "∞", "-Infinity": "−∞", "NaN": ""}.get(value, value)
    return "" if value is None else f"{value:.1e}" if value else "0"

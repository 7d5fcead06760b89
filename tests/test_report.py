"""Verdicts as HTML and LaTeX: everything is there, nothing is loaded, every statement is typeset; and how a real browser shows it."""

import importlib
import inspect
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Annotated, Any

import pytest
from annotated_types import Interval
from matplotlib.figure import Figure

import linconv as lc
from linconv.claims import Check, agree, at_most, control
from linconv.claims.output import brief, to_json
from linconv.report import latex, number, page, statement_html, statement_latex
from verification.__main__ import claims as claim_names
from verification.__main__ import main

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync", "--virtual-time-budget=2000"]
DANGEROUS = '<script>alert("x")</script> & <b>'


def passing(*, seed: Annotated[int, Interval(ge=0, le=9)] = 0) -> Iterator[Check]:
    yield agree("a < b & c", 1.0, 1.0 + 1e-16)
    yield at_most("matrix", [[1.0, 2.0]], 3.0)
    yield control(DANGEROUS, agree("", 1.0, 2.0))


def failing() -> Iterator[Check]:
    yield agree("false", 1.0, 1.1)
    yield control("scaled", agree("", 1.0, 2.0))


def documents() -> list[dict[str, Any]]:
    statement = (
        'Shifts keep $|\\hat w_u|$.\n\nFor `w` < 1 & all u\n\n$$\\sum_u \\frac{1}{D} |\\hat w_u|^2 = \\|w\\|^2$$\n\nSource: "nobody".'
    )
    first = to_json(lc.check(passing)) | {"kind": "theorem", "statement": statement}
    second = to_json(lc.check(failing)) | {"kind": "empirical"}
    return [first, second, {"claim": "broken", "verdict": "INVALID", "reason": DANGEROUS}]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    figure = Figure(figsize=(4, 2))
    figure.subplots().plot([0, 1], [0, 1])
    figure.savefig(folder / "line.png")
    (folder / "index.html").write_text(page(documents(), exit_code=5, figures={"passing": [folder / "line.png"]}), encoding="utf-8")
    return folder / "index.html"


class Tags(HTMLParser):
    """All tags with attributes, and the text between."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_has_every_part_of_every_verdict(made: Path) -> None:
    tags = Tags(made.read_text(encoding="utf-8"))
    for part in (
        "HOLDS",
        "REFUTED",
        "INVALID",
        "a < b & c",
        "1×2 array",
        "Exit code 5",
        "sampled",
        "torch",
        "theorem",
        "empirical",
        "1 of 1",
        "Reproduce with",
    ):
        assert part in tags.text, part
    assert {attributes.get("id") for tag, attributes in tags.found if tag == "section"} == {"passing", "failing", "broken"}
    assert sum(tag == "math" for tag, _ in tags.found) == 2


def test_the_page_loads_nothing_and_runs_nothing(made: Path) -> None:
    """Text of a claim is text, whatever is in it; the only sources are data of the page's own."""
    tags = Tags(made.read_text(encoding="utf-8"))
    assert DANGEROUS in tags.text
    assert not any(tag in ("script", "link", "iframe", "object", "b ") for tag, _ in tags.found)
    sources = [value for _, attributes in tags.found for name, value in attributes.items() if name in ("src", "href", "srcset", "data")]
    assert all(source is not None and source.startswith(("data:image/png;base64,", "#")) for source in sources)


@pytest.mark.parametrize("name", claim_names())
def test_the_statement_of_every_claim_is_typeset(name: str) -> None:
    """No formula is left as its source, in MathML; balanced and plain ASCII, so that any LaTeX reads it."""
    statement = inspect.cleandoc(importlib.import_module(f"verification.{name}").__doc__ or "")
    shown = statement_html(statement)
    assert shown.count("<math") == statement.replace("$$", "$").count("$") // 2
    text = Tags(shown).text
    assert "$" not in text
    assert not re.search(r"\\[a-zA-Z]+", text), "a command that was not understood"
    written = statement_latex(statement)
    assert written.isascii()
    assert written.count("{") - written.count(r"\{") == written.count("}") - written.count(r"\}")


def test_latex_writes_special_characters_out() -> None:
    verdict = {
        "claim": "a_b",
        "verdict": "HOLDS",
        "scope": "50 % of {x} & λ ≤ ½, β̂ → ∞ #1 ~ ^ \\ --n=3",
        "reason": "",
        "statement": "For λ: $λ_1 < 2$.",
    }
    text = latex([verdict])
    assert text.isascii()
    for part in (
        r"a\_b & HOLDS",
        r"50 \% of \{x\} \&",
        r"\ensuremath{\lambda}",
        r"\hat{",
        r"\textbackslash",
        "-{}-n=3",
        r"$\lambda _1 < 2$",
    ):
        assert part in text, part


def test_a_document_that_is_no_verdict_is_refused() -> None:
    with pytest.raises(ValueError, match=r"documents: expected the JSON of a verdict, got one with nothing"):
        page([{}], exit_code=0)


def test_numbers_and_values_are_brief() -> None:
    assert [number(value) for value in ("Infinity", "-Infinity", "NaN", None, 0.0, 1.234e-7)] == ["∞", "−∞", "", "", "0", "1.2e-07"]
    assert brief([1.0, 0.5]) == "[1, 0.5]"
    assert brief({"re": 1.0, "im": -2.0}) == "1-2i"
    assert brief([0.0] * 7) == "7 array"
    assert brief([]) == "[]"


def test_the_command_writes_page_table_and_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("verification.__main__.claims", lambda: ["fully_connected_cost"])
    code = main(["--fast", "--html", str(tmp_path / "site"), "--latex", str(tmp_path / "t.tex"), "--json", str(tmp_path / "v.json")])
    assert code == 0
    written = json.loads((tmp_path / "v.json").read_text(encoding="utf-8"))
    assert written["claims"][0]["verdict"] == "HOLDS"
    assert "fully_connected_cost" in (tmp_path / "site" / "index.html").read_text(encoding="utf-8")
    assert r"fully\_connected\_cost & HOLDS" in (tmp_path / "t.tex").read_text(encoding="utf-8")


@pytest.mark.parametrize("flag", ["--html", "--latex", "--json"])
def test_what_cannot_be_written_is_said_before_anything_runs(flag: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main(["--fast", flag, str(tmp_path / "file" / "below")]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert len(shown.err.splitlines()) == 1


MEASURE = """<script>
addEventListener("load", () => {
  document.querySelectorAll("details").forEach(d => d.open = true);
  const size = e => { const r = e.getBoundingClientRect(); return [r.width, r.height]; };
  const found = {
    math: [...document.querySelectorAll("math")].map(size),
    images: [...document.images].map(i => [i.naturalWidth, i.naturalHeight]),
    overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
    loaded: performance.getEntriesByType("resource").map(r => r.name).filter(n => !n.startsWith("data:")),
    fraction: size(document.querySelector("mfrac")),
    letter: size(document.querySelector("mi")),
  };
  const out = document.createElement("pre"); out.id = "measured"; out.textContent = JSON.stringify(found); document.body.append(out);
});
</script></head>"""


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("width", [1200, 500])
def test_a_real_browser_shows_it(made: Path, tmp_path: Path, width: int) -> None:
    """Formulas and figures have sizes, fractions are stacked, nothing sticks out of the window, nothing is loaded."""
    policy = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')
    text = made.read_text(encoding="utf-8")
    assert policy.search(text)
    (tmp_path / "measured.html").write_text(policy.sub("", text).replace("</head>", MEASURE), encoding="utf-8")
    command = [str(BROWSER), *FLAGS, f"--user-data-dir={tmp_path}/profile", f"--window-size={width},900", "--dump-dom"]
    done = subprocess.run([*command, (tmp_path / "measured.html").as_uri()], capture_output=True, text=True, check=False, timeout=120)
    answer = re.search(r'<pre id="measured">(.*?)</pre>', done.stdout, re.DOTALL)
    assert answer, done.stderr[-2000:]
    found = json.loads(answer[1])
    assert len(found["math"]) == 2
    assert all(w > 5 and h > 5 for w, h in found["math"])
    assert found["images"] == [[400, 200]]
    assert found["overflow"] <= 0
    assert found["loaded"] == []
    assert found["fraction"][1] > 1.5 * found["letter"][1]

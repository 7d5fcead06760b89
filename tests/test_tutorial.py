"""The tutorial: its file is run as it says, and what it quotes is what comes."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent / "docs"
RUNS = re.findall(r"```\n\$ python fewer_taps\.py ?(.*?)\n(.*?)```", (DOCS / "tutorial.md").read_text(encoding="utf-8"), re.DOTALL)


def words(text: str) -> str:
    """Without line breaks and numbers: what Hypothesis draws depends on the constants in the sources that are loaded."""
    return re.sub(r"\d+(\.\d+)?(e[-+]\d+)?", "#", " ".join(text.split()))


def test_the_tutorial_has_its_three_runs() -> None:
    assert [arguments for arguments, _ in RUNS] == ["", "--falsify 200", "--falsify 200 --depth 1"]


@pytest.mark.parametrize(("arguments", "quoted"), RUNS)
def test_what_the_tutorial_quotes_is_what_comes(arguments: str, quoted: str) -> None:
    """Piece by piece between the marks that leave something out."""
    command = [sys.executable, str(DOCS / "fewer_taps.py"), *arguments.split()]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, cwd=DOCS.parent)
    assert done.returncode == (1 if "REFUTED" in quoted else 0), done.stderr
    for piece in quoted.split("…"):
        assert words(piece) in words(done.stdout)
    if "REFUTED" in quoted:
        assert "beta=torch.tensor([[[1.0, 1.0, 1.0]]], dtype=torch.float64)" in done.stdout

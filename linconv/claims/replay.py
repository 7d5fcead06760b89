"""A failure is run again in a fresh process, from its recorded parameters, before it is called a refutation."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from linconv.claims.arguments import read, written
from linconv.claims.signatures import validated
from linconv.claims.subject import Subject, load, subject_of

REPLAYING = "LINCONV_CLAIM_REPLAY"
CHILD = "from linconv.claims.replay import child; child()"


def replayable(subject: Subject, arguments: Mapping[str, Any]) -> bool:
    """Whether a fresh process finds the function, and all its arguments can be written down."""
    if not (subject.module or subject.file):
        return False
    try:
        json.dumps([written(value) for value in arguments.values()])
    except TypeError:
        return False
    return True


def replay(subject: Subject, arguments: Mapping[str, Any]) -> dict[str, str] | None:
    """The outcome of every check by name, as a fresh process finds it; None where that process did not get so far.

    The process has the module search path, the environment and the directory of this one.
    """
    plain = {name: written(value) for name, value in arguments.items()}
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        where = {"module": subject.module, "file": subject.file, "function": subject.claim.__qualname__}
        request = json.dumps(where | {"arguments": plain, "answer": str(answer)})
        path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        environment = os.environ | {"PYTHONPATH": path, REPLAYING: "1"}
        subprocess.run([sys.executable, "-P", "-c", CHILD], input=request, text=True, env=environment, capture_output=True, check=False)
        if not answer.exists():
            return None
        outcomes: dict[str, str] = json.loads(answer.read_text(encoding="utf-8"))
        return outcomes


def child() -> None:
    """Read a request from standard input, run the claim once without confirming anything, and write the outcomes."""
    from linconv.claims.runner import execute

    request = json.loads(sys.stdin.read())
    subject = subject_of(getattr(load(request["module"], request["file"]), request["function"]))
    run = execute(subject, validated(subject.parameters, {name: read(value) for name, value in request["arguments"].items()}))
    Path(request["answer"]).write_text(json.dumps({check.name: check.outcome for check in run.checks}), encoding="utf-8")

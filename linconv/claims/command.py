"""The command line of a claim, made from its signature."""

import inspect
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn

from linconv.claims.budgets import read_budget
from linconv.claims.checks import DrawingError, UsageError
from linconv.claims.output import Terminal, to_json, writable, write_json, write_text
from linconv.claims.runner import arguments_of, checked_seed, decide
from linconv.claims.signatures import Parameter
from linconv.claims.subject import Claim, Subject, described, subject_of, versions
from linconv.claims.verdict import EXIT_CODES, USAGE_ERROR, Verdict

EXITS = "Exit codes: 0 HOLDS, 1 REFUTED, 2 usage error, 3 INCONCLUSIVE, 4 NOT APPLICABLE, 5 INVALID (the check itself is broken)."
JSON_HELP = "Write the verdict, its checks and controls to this file."
PLOT_HELP = "Save the claim's figures in this folder, as PDF and PNG."
FALSIFY_HELP = "Seek a counterexample over all parameters that are not given: 50 examples, or 50s seconds."
SEED_HELP = "Seed of what is drawn, and of the search."


def main(claim: Claim, argv: Sequence[str] | None = None) -> NoReturn:
    """Run a claim as a command, with a flag for each of its parameters, and end the process with the exit code of its verdict.

    `argv` is by default the command line of this process. Besides the claim's flags there are `--json FILE`, `--plot DIR`,
    `--falsify BUDGET`, `--seed` and `--help`. A refutation is also written as a program, beside the JSON as FILE's stem with
    `.witness.py`. A wrong flag or value ends with 2 and one line on standard error, before anything is written.
    """
    tokens = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    try:
        code = _run(claim, tokens)
    except KeyboardInterrupt:
        code = _complain("interrupted", EXIT_CODES["INCONCLUSIVE"])
    except Exception:
        traceback.print_exc()
        code = _complain("the claims engine failed; this says nothing about the claim", EXIT_CODES["INVALID"])
    sys.exit(code)


def _run(claim: Claim, tokens: list[str]) -> int:
    try:
        subject = subject_of(claim)
    except Exception as error:
        return _unusable(claim, tokens, _line(error))
    try:
        given, outputs = _parse(subject, tokens)
        budget = None if outputs["falsify"] is None else read_budget(outputs["falsify"])
        arguments, seed = arguments_of(subject, given)
        json_file, plot_folder = outputs["json"], outputs["plot"]
        _check_outputs(json_file, plot_folder)
    except _Helped:
        return 0
    except DrawingError as error:
        return _unusable(claim, tokens, _line(error))
    except (_Unusable, TypeError, ValueError) as error:
        return _complain(_line(error), USAGE_ERROR)
    terminal = Terminal(plot_folder)
    terminal.header(subject, subject.command(arguments, seed) if budget is None else subject.search_command(given, budget, outputs["seed"]))
    try:
        with terminal.bar:
            if budget is None:
                verdict = decide(subject, given, terminal.show)
            else:
                from linconv.claims.search import search  # it needs Hypothesis, which takes a while to import

                verdict = search(subject, given, budget, outputs["seed"], terminal.show)
    except UsageError as error:
        return _complain(_line(error), USAGE_ERROR)
    if json_file is not None:
        write_json(to_json(verdict), json_file)
        if verdict.snippet:
            write_text(verdict.snippet, json_file.with_name(f"{json_file.stem}.witness.py"))
    terminal.verdict(verdict)
    return verdict.exit_code


class _Helped(Exception):
    """Help was asked for and printed."""


class _Unusable(Exception):
    """The command line is wrong."""


def _parse(subject: Subject, tokens: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The claim's arguments as given, and the values of the flags that every claim has.

    A seed stands among the arguments where the claim declares one or draws; it is the search's in any case.
    """
    import cyclopts

    flags = {name: parameter for name, parameter in subject.parameters.items() if parameter.domain.is_flag}
    app = cyclopts.App(
        name=" ".join(subject.launcher) or subject.name,
        help=subject.statement + f"\n\n{EXITS}",
        help_format="plaintext",
        version_flags=[],
    )

    def command(**arguments: Any) -> dict[str, Any]:
        return arguments

    signature = [_signature(flags[name]) for name in flags] + [
        _output("json", JSON_HELP),
        _output("plot", PLOT_HELP),
        _output("falsify", FALSIFY_HELP, str),
    ]
    signature += [] if "seed" in flags else [_output("seed", SEED_HELP, int)]
    command.__signature__ = inspect.Signature(signature)  # type: ignore[attr-defined]  # the way Python lets a signature be set
    command.__annotations__ = {entry.name: entry.annotation for entry in signature}
    app["--help"].group = "Parameters"
    app.default(command)
    try:
        chosen, bound, _ = app.parse_args(tokens, exit_on_error=False, print_error=False)
    except cyclopts.CycloptsError as error:
        raise _Unusable(f"{_line(error).rstrip('.')}; --help lists the parameters") from None
    if chosen is not command:
        chosen(*bound.args, **bound.kwargs)
        raise _Helped
    given = dict(bound.arguments)
    outputs = {name: given.pop(name, None) for name in ("json", "plot", "falsify")} | {"seed": checked_seed(given.get("seed", 0))}
    draws = any(parameter.domain.strategy is not None for parameter in subject.parameters.values())
    if "seed" not in flags and not draws:
        given.pop("seed", None)
    return given, outputs


def _signature(parameter: Parameter) -> inspect.Parameter:
    import cyclopts

    domain = parameter.domain
    described = "" if domain.kind in ("choice", bool) else domain.describe()
    text = ": ".join(filter(None, [parameter.help, described]))

    def convert(_: object, tokens: Sequence[Any]) -> Any:
        try:
            return domain.parse([token.value for token in tokens])
        except ValueError as error:
            # cyclopts names the flag of a single value only
            raise ValueError(f"{parameter.flag}: each {error}" if domain.kind == "tuple" else str(error)) from None

    settings = cyclopts.Parameter(
        name=parameter.flag,
        help=text[:1].upper() + text[1:],
        converter=None if domain.kind is bool else convert,
        consume_multiple=domain.variadic,
        negative_iterable=(),
    )
    return inspect.Parameter(
        parameter.name, inspect.Parameter.KEYWORD_ONLY, default=parameter.default, annotation=Annotated[domain.hint, settings]
    )


def _output(name: str, text: str, kind: type = Path) -> inspect.Parameter:
    import cyclopts

    settings = cyclopts.Parameter(help=text, show_default=False)
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, settings])


def _check_outputs(json_file: Path | None, plot_folder: Path | None) -> None:
    problem = "" if json_file is None else writable(json_file)
    if not problem and plot_folder is not None:
        try:
            plot_folder.mkdir(parents=True, exist_ok=True)
            problem = writable(plot_folder / "figure")
        except OSError as error:
            problem = f"{plot_folder} is no folder and cannot be made one: {error.strerror}"
    if problem:
        raise _Unusable(problem)


def _unusable(claim: Claim, tokens: list[str], reason: str) -> int:
    """A claim whose signature cannot be read is INVALID; its JSON is written all the same."""
    name, statement = described(claim)
    verdict = Verdict(name, statement, {}, versions(), None, (), (), "INVALID", "", reason)
    for token, following in zip(tokens, [*tokens[1:], ""], strict=False):
        target = following if token == "--json" else token.removeprefix("--json=") if token.startswith("--json=") else ""
        if target and not writable(Path(target)):
            write_json(to_json(verdict), Path(target))
    return _complain(f"INVALID: {reason}", verdict.exit_code)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _complain(text: str, code: int) -> int:
    sys.stderr.write(f"{text}\n")
    return code

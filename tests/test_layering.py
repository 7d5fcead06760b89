"""The arrows between modules, read from the sources: which module of the library may import which (docs/architecture.md)."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = Path(__file__).parent.parent / "linconv"
# Left never imports right.
ORDERS = [
    [
        {"losses"},
        {"network"},
        {"symbols"},
        {"enclosures"},
        {"spectrum", "torch_import"},
        {"shrinkage"},
        {"spectral_shrinkage"},
        {"penalties"},
        {"cost"},
        {"solvers", "training"},
    ],
    [{"network"}, {"models"}, {"patches"}],
    [{"spectrum"}, {"spectra"}, {"filters"}],
    [{"spectra"}, {"gradient_spectra"}, {"sensitivity"}],
    [{"sgd"}, {"gradient_spectra"}],
    [{"network"}, {"checkpoints"}, {"sgd"}, {"classifiers"}],
    [{"network"}, {"torch_import"}, {"hypotheses"}],
    [{"sgd", "interpolation"}, {"activations", "deformation"}, {"responses"}, {"stability"}],
    [{"spectrum"}, {"spectra"}, {"linear_stability"}, {"stationary_fields"}],
    [{"deformation"}, {"pooling"}, {"pooling_stability"}, {"pooling_noise"}],
    [{"network"}, {"models"}, {"filter_energies"}],
    [{"deformation"}, {"kernels", "dual_maxima"}, {"minimal_variation", "shallow"}, {"sphere"}],
    [
        {"network"},
        {"spectrum"},
        {"patches"},
        {"joint_training"},
        {"profiles", "sensitivity", "deformation"},
        {"profile_fits", "pooling", "sphere"},
        {"plotting"},
    ],
]
EVERYONE_MAY_IMPORT = {"validation"}
ALONE = {
    "validation": set(),
    "witnesses": set(),
    "images": EVERYONE_MAY_IMPORT,
    "claims": EVERYONE_MAY_IMPORT,
    "statistics": EVERYONE_MAY_IMPORT,
    "report": {"claims"},
}
NOBODY_IMPORTS = {"strategies", "verification", "tests", "benchmarks"}
# The only imports against an arrow, each inside a function.
EXCEPTIONS = {("cost", "solvers.restricted")}


class Import(NamedTuple):
    source: str  # "cost", or "solvers.fit"
    target: str
    line: int
    inside_function: bool


def package_modules() -> dict[str, str]:
    """Dotted names below `linconv` with their sources; a package stands under its own name."""
    sources = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        sources[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path.read_text(encoding="utf-8")
    return sources


def imports_of(name: str, source: str, known: set[str]) -> list[Import]:
    """Every import of something of this project, absolute or relative, at the top or inside a function."""
    found: list[Import] = []

    def add(dotted: str, line: int, inside: bool) -> None:
        head, _, rest = dotted.partition(".")
        if head in NOBODY_IMPORTS:
            found.append(Import(name, head, line, inside))
        if head == "linconv":
            while rest and rest not in known:  # a name in a module: its module
                rest = rest.rpartition(".")[0]
            found.append(Import(name, rest, line, inside))

    def visit(node: ast.AST, inside: bool) -> None:
        inside = inside or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        if isinstance(node, ast.Import):
            for alias in node.names:
                add(alias.name, node.lineno, inside)
        if isinstance(node, ast.ImportFrom):
            is_package = any(other.startswith(f"{name}.") for other in known) or not name
            base = ["linconv", *name.split(".")][: -(node.level - is_package) or None] if node.level else []
            base = [part for part in base if part] + ([node.module] if node.module else [])
            for alias in node.names:
                add(".".join([*base, alias.name]), node.lineno, inside)
        for child in ast.iter_child_nodes(node):
            visit(child, inside)

    visit(ast.parse(source), False)
    return found


def top(name: str) -> str:
    return name.partition(".")[0]


def complaint(entry: Import) -> str | None:
    """Why an import is against the arrows, None where it is not."""
    source, target = top(entry.source), top(entry.target)
    if target == source or entry.source == "":
        return f"{source} imports {target}" if target in NOBODY_IMPORTS and entry.source == "" else None
    if target in NOBODY_IMPORTS:
        return f"nobody imports {target}"
    if target == "":
        return "a module imports the module where a name lives, not the package"
    if (entry.source, entry.target) in EXCEPTIONS:
        return None if entry.inside_function else "allowed inside a function only"
    if target in EVERYONE_MAY_IMPORT and source != "witnesses":
        return None
    if source in ALONE and target not in ALONE[source]:
        return f"{source} imports nothing but {sorted(ALONE[source])}"
    for order in ORDERS:
        places = {name: i for i, names in enumerate(order) for name in names}
        if source in places and target in places and places[source] < places[target]:
            return f"{source} stands left of {target}"
    return None


def all_imports(sources: dict[str, str]) -> list[Import]:
    return [entry for name, source in sources.items() for entry in imports_of(name, source, set(sources))]


def violations(sources: dict[str, str]) -> list[str]:
    found = [(entry, complaint(entry)) for entry in all_imports(sources)]
    return [f"linconv/{entry.source.replace('.', '/')}, line {entry.line}, imports {entry.target}: {why}" for entry, why in found if why]


def order_of(sources: dict[str, str]) -> list[str]:
    """The modules in an order in which each comes after those that it imports at its top; raises `CycleError` if there is none."""
    graph: dict[str, set[str]] = {}
    for entry in all_imports(sources):
        if not entry.inside_function and entry.source and top(entry.source) != top(entry.target):
            graph.setdefault(top(entry.source), set()).add(top(entry.target))
    return list(TopologicalSorter(graph).static_order())


def test_imports_follow_the_arrows():
    assert violations(package_modules()) == []


def test_there_is_no_cycle():
    order = order_of(package_modules())
    assert order.index("network") < order.index("spectrum") < order.index("penalties") < order.index("cost")


def test_exceptions_are_still_needed():
    entries = {(entry.source, entry.target) for entry in all_imports(package_modules())}
    assert entries >= EXCEPTIONS


def test_the_package_itself_does_not_load_strategies_or_witnesses():
    targets = {top(entry.target) for entry in imports_of("", package_modules()[""], set(package_modules()))}
    assert not targets & {"strategies", "witnesses"}


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("network", "from linconv.spectrum import conv_blocks"),
        ("network", "import linconv.cost"),
        ("spectrum", "from linconv import penalties"),
        ("spectrum", "def f():\n    from linconv.cost import Cost"),
        ("penalties", "from .cost import Cost"),
        ("cost", "from linconv.training import train"),
        ("cost", "from linconv.solvers.restricted import restricted_cost"),
        ("cost", "def f():\n    from linconv.solvers.fit import fit"),
        ("profiles", "from linconv.pooling import two_pixels"),
        ("claims.checks", "from linconv.network import LinearCNN"),
        ("claims.checks", "from ..network import LinearCNN"),
        ("claims", "from linconv.spectrum import conv_blocks"),
        ("images.loading", "from linconv.cost import Cost"),
        ("witnesses", "from linconv.validation import validate_size"),
        ("witnesses", "def f():\n    import linconv.network"),
        ("validation", "from linconv.network import LinearCNN"),
        ("sweeps", "from linconv.strategies import grids"),
        ("report", "import verification.theorem410"),
        ("report", "def f():\n    from verification import theorem410"),
        ("solvers.fit", "from linconv import LinearCNN"),
        ("", "from linconv.strategies import grids"),
    ],
)
def test_wrong_arrows_are_found(module, line):
    names = [
        "",
        "network",
        "spectrum",
        "penalties",
        "cost",
        "solvers",
        "solvers.restricted",
        "solvers.fit",
        "training",
        "profiles",
        "pooling",
    ]
    names += ["claims", "claims.checks", "images", "images.loading", "witnesses", "validation", "strategies", "sweeps", "report"]
    assert len(violations(dict.fromkeys(names, "") | {module: line})) == 1


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("cost", "def f():\n    from linconv.solvers.restricted import restricted_cost"),
        ("solvers.fit", "from linconv.cost import representation_cost"),
        ("solvers.fit", "from linconv.solvers.restricted import restricted_cost"),
        ("solvers", "from .fit import fit"),
        ("network", "from linconv.validation import validate_size"),
        ("images.loading", "from linconv.validation import validate_size"),
        ("claims", "from linconv.claims.checks import Check"),
        ("pooling", "from linconv.profiles import energy_profile"),
        ("", "from linconv.solvers import fit"),
        ("training", "import torch, numpy.linalg"),
    ],
)
def test_right_arrows_are_allowed(module, line):
    names = ["", "network", "cost", "solvers", "solvers.restricted", "solvers.fit", "training", "profiles", "pooling", "validation"]
    names += ["claims", "claims.checks", "images", "images.loading"]
    assert violations(dict.fromkeys(names, "") | {module: line}) == []


def test_cycles_are_found():
    with pytest.raises(CycleError):
        order_of({"models": "from linconv.sphere import f", "sphere": "from linconv.models import g"})

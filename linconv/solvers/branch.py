r"""Branch and bound over blocks: the bracket of depth ≥ 3, made narrower for as long as one likes.

Best first.  A node is a cell (`cells`) with its own separable quadratic; it is bounded and made smaller as the root is
(`relaxation`), and then split: where a singular value's penalty is above its convex envelope, into 0 and not 0, or at a point of its
interval; where only the direction of a block is open, into two boxes.  Once every singular value is 0 or beyond the point where
½s_u t² + μt^p turns convex, a node of vector blocks is a convex problem: a tree of supports is then all that is needed.
Source: derived here; docs/lower-bounds.md.
"""

import hashlib
import heapq
import json
import math
import os
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Complex, Float
from torch import Tensor

from linconv.shrinkage import minimiser
from linconv.solvers.bisection import split
from linconv.solvers.cells import Blocks, Box, Cell
from linconv.solvers.monitor import Monitor
from linconv.solvers.orbits import Orbits, minorant, orbits_of
from linconv.solvers.problem import Problem, Solution
from linconv.solvers.relaxation import PATIENT, Bound, Region, root_region, solve, tightened, wanted

NODE_STEPS = 200
DESCENT_STEPS = 2000
DESCENTS = 64  # a local descent from nodes 1, 2, 4, …, and from every 64th
SAVE_EVERY = 50  # nodes between two checkpoints
FORMAT = 2
METHOD = "branch and bound"


@dataclass(frozen=True)
class Node:
    """A cell, the blocks to start from, the s of its parent, and a lower bound on F in it."""

    cell: Cell
    blocks: Blocks
    s: Float[np.ndarray, " O"]
    lower: float


class Tree:
    """The nodes that are open, the best predictor, and the least bound of what was closed because it was good enough."""

    def __init__(self, problem: Problem, blocks: Complex[Tensor, "F K C"], value: float, tol: float, monitor: Monitor = PATIENT):
        self.problem, self.blocks, self.value, self.tol, self.monitor = problem, blocks, value, tol, monitor
        self.closed, self.nodes, self.count = math.inf, 0, 0
        self.open: list[tuple[float, int, Node]] = []

    def plant(self) -> None:
        """The root."""
        region, lower = root_region(self.problem, self.value, self.goal, self.monitor)
        self.orbits = orbits_of(self.problem) if region is None else region.orbits
        if region is None:
            self.closed = lower
        else:
            self.push(Node(region.cell, region.bound.blocks, region.s, lower))

    @cached_property
    def metric(self) -> Float[np.ndarray, " O"]:
        return self.orbits.metric()

    @property
    def goal(self) -> float:
        """A bound at which a node need not be split."""
        return self.value * (1 - self.tol)

    @property
    def lower(self) -> float:
        return min(self.value, self.closed, self.open[0][0] if self.open else math.inf)

    @property
    def solution(self) -> Solution:
        return Solution(self.problem.predictor(self.blocks), self.value, self.lower, METHOD, nodes=self.nodes)

    def push(self, node: Node) -> None:
        if node.lower >= self.goal:
            self.closed = min(self.closed, node.lower)
        else:
            self.count += 1
            heapq.heappush(self.open, (node.lower, self.count, node))

    def improve(self, blocks: Blocks) -> None:
        """A descent from blocks, kept where it goes below the best known value."""
        near = self.orbits.predictor_blocks(descent(self.orbits, blocks, self.metric))
        value = self.problem.objective(self.problem.predictor(near))
        if value < self.value:
            self.blocks, self.value = near, value

    def grow(self) -> None:
        """Split the node of the least bound; it stays open until its children are there, whatever interrupts or fails before."""
        node = self.open[0][2]
        children = list(self.children(node))
        heapq.heappop(self.open)
        self.nodes += 1
        for child in children:
            self.push(child)

    def children(self, node: Node) -> Iterator[Node]:
        for cell in split(self.region(node)):
            start = node.blocks if cell.box is None else cell.box.clip(node.blocks)
            child = self.bounded(Node(cell, start, node.s, node.lower))
            if child is not None:
                yield child
        if (self.nodes & (self.nodes + 1)) == 0 or self.nodes % DESCENTS == 0:
            self.improve(node.blocks)

    def region(self, node: Node) -> Region:
        empty = np.zeros_like(node.cell.low)
        return Region(self.orbits, node.cell, node.s, Bound(node.lower, node.blocks, empty, empty[:, 0], empty))

    def bounded(self, node: Node) -> Node | None:
        """The node with its own bound, cell and s; None if no better predictor is in it."""
        region = self.region(node)
        for _ in range(2):
            start, metric = region.bound.blocks, self.metric
            bound = solve(self.orbits, region.penalty, region.cell, metric, start, self.goal, NODE_STEPS, self.monitor)
            region = replace(region, bound=bound)
            if bound.value >= self.goal or self.monitor.late():
                break
            alive = region.cell.high[:, 0] > 0
            smaller = tightened(region, self.value)
            if smaller is None:
                return None
            region = smaller
            kept = region.cell.high[:, 0] > 0
            if kept.sum() == alive.sum() and kept.sum() == (node.s > 0).sum():
                break
            region = replace(region, s=self.sharper(region, kept))
        return Node(region.cell, region.bound.blocks, region.s, min(max(region.bound.value, node.lower), self.value))

    def sharper(self, region: Region, kept: Bool[np.ndarray, " O"]) -> Float[np.ndarray, " O"]:
        """s half way to the best for the orbits that are left."""
        if not kept.any():
            return region.s
        s = np.zeros(len(kept))
        s[kept] = minorant(self.orbits.restrict(kept), wanted(region)[kept])
        if not s.any():
            return region.s
        return np.where(kept, (s + region.s) / 2 if region.s.any() else s, 0.0)


def branch_and_bound(
    problem: Problem,
    blocks: Complex[Tensor, "F K C"],
    value: float,
    *,
    tol: float,
    max_nodes: int | float,
    monitor: Monitor,
    checkpoint: str | os.PathLike[str] | None = None,
) -> Solution:
    """Narrow the bracket of a problem of depth ≥ 3 and squared error until its gap is `tol`, or `max_nodes` nodes have been split.

    `blocks`, of the half spectrum, and `value` = F there: the best predictor known.  `monitor` is asked after every node; what
    is returned is proved whenever it ends.  `checkpoint`: a file from which the search goes on if it is there, and where
    it is kept, written anew in one step every 50 nodes and at the end, also of a `KeyboardInterrupt`.

    Raises `ValueError` where the file is no checkpoint, or that of another problem.
    """
    tree = Tree(problem, blocks, value, tol, monitor)
    path = None if checkpoint is None else Path(checkpoint)
    if path is not None and path.exists():
        load(tree, path)
    else:
        tree.plant()
    try:
        while tree.open and tree.nodes < max_nodes and monitor(tree.solution):
            tree.grow()
            if path is not None and tree.nodes % SAVE_EVERY == 0:
                save(tree, path)
    finally:
        if path is not None:
            save(tree, path)
    return tree.solution


def descent(orbits: Orbits, start: Blocks, metric: Float[np.ndarray, " O"]) -> Blocks:
    """Proximal gradient steps on F itself from `start`, with extrapolation, undone where F rises."""
    problem, rank = orbits.problem, orbits.problem.max_rank or min(start.shape[1:])

    def step(blocks: Blocks, gradient: Blocks) -> tuple[Blocks, float, Blocks]:
        u, sigma, vh = np.linalg.svd(blocks - gradient / metric[:, None, None], full_matrices=False)
        t = minimiser(np, sigma, problem.mu / metric[:, None], problem.p)[0]
        t[:, rank:] = 0.0
        moved = (u * t[:, None, :]) @ vh
        value, slope, _, _ = orbits.linearise(moved)
        return moved, value + problem.mu * float(orbits.mult @ (t**problem.p).sum(1)), slope

    blocks, value, gradient = step(start, orbits.linearise(start)[1])
    previous, momentum = blocks, 1.0
    for _ in range(DESCENT_STEPS):
        following = (1 + math.sqrt(1 + 4 * momentum**2)) / 2
        ahead = blocks + (momentum - 1) / following * (blocks - previous)
        trial, reached, slope = step(ahead, gradient if momentum == 1.0 else orbits.linearise(ahead)[1])
        if reached > value and momentum > 1.0:
            momentum = 1.0
            continue
        if value - reached <= 1e-13 * value:
            break
        previous, blocks, value, gradient, momentum = blocks, trial, reached, slope, following
    return blocks


# --- Checkpoints -------------------------------------------------------------------------------------------------------


def fingerprint(problem: Problem, tol: float) -> str:
    """A hash of data and parameters."""
    digest = hashlib.sha256()
    for data in (problem.x, problem.y):
        digest.update(repr(tuple(data.shape)).encode() + np.ascontiguousarray(data.cpu().numpy()).tobytes())
    facts = (problem.depth, problem.weight_decay, problem.max_rank, type(problem.loss).__name__, problem.constant, tol)
    digest.update(repr(facts).encode())
    return digest.hexdigest()


def save(tree: Tree, path: Path) -> None:
    """Write the tree to a file beside `path`, which then takes its place in one step."""
    nodes = sorted(tree.open, key=lambda entry: entry[1])
    header = {
        "format": FORMAT,
        "problem": fingerprint(tree.problem, tree.tol),
        "value": tree.value,
        "nodes": tree.nodes,
        "count": tree.count,
    }
    arrays = {"header": np.frombuffer(json.dumps(header).encode(), dtype=np.uint8), "closed": np.array(tree.closed)}
    arrays |= {
        "incumbent": tree.blocks.cpu().numpy(),
        "index": tree.orbits.index,
        "order": np.array([entry[1] for entry in nodes], dtype=np.int64),
    }
    boxes = [entry[2].cell.box for entry in nodes]
    if nodes:
        for name in ("low", "high", "zero"):
            arrays[name] = np.stack([getattr(entry[2].cell, name) for entry in nodes])
        for name in ("blocks", "s", "lower"):
            arrays[name] = np.stack([getattr(entry[2], name) for entry in nodes])
    arrays["boxed"] = np.array([box is not None for box in boxes], dtype=bool)
    if any(boxes):
        for name in ("near", "far"):
            arrays[name] = np.stack([getattr(box, name) for box in boxes if box is not None])
    temporary = path.with_name(path.name + ".part")
    with open(temporary, "wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def load(tree: Tree, path: Path) -> None:
    """Fill the tree from a file; `ValueError` if it is not one of this problem."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        header = json.loads(arrays["header"].tobytes())
        known = header["format"] == FORMAT
    except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"checkpoint: expected a file that branch and bound has written, got {path} ({type(error).__name__}); name another file"
        ) from error
    if not known or header["problem"] != fingerprint(tree.problem, tree.tol):
        raise ValueError(
            f"checkpoint: {path} is of another problem (other data, depth, weight decay, width, loss or tol); name another file"
        )
    whole = orbits_of(tree.problem)
    tree.orbits = whole.restrict(np.isin(whole.index, arrays["index"]))
    tree.closed, tree.nodes, tree.count = float(arrays["closed"]), header["nodes"], header["count"]
    if header["value"] <= tree.value:
        tree.value, tree.blocks = header["value"], torch.from_numpy(arrays["incumbent"]).to(tree.blocks.device)
    boxes = map(Box, arrays["near"], arrays["far"]) if arrays["boxed"].any() else iter(())
    for at, order in enumerate(arrays["order"].tolist()):
        box = next(boxes) if arrays["boxed"][at] else None
        cell = Cell(arrays["low"][at], arrays["high"][at], arrays["zero"][at], box)
        lower = float(arrays["lower"][at])
        heapq.heappush(tree.open, (lower, order, Node(cell, arrays["blocks"][at], arrays["s"][at], lower)))

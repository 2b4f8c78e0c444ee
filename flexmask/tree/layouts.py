"""Passes -> prefix tree -> rows.

A pass is the text of one turn as tokens: its prompt, as inference shows it, and the answer to it. Passes that begin
with the same tokens share them. Merging passes by longest common prefix gives a tree whose nodes are runs of tokens
between two branch points. Its tokens in depth-first order are a row, in which every subtree is one contiguous stretch;
that is all the mask rule needs (`flexmask.attention.masks`). Two turns, each part written as if it were one token:

       q1 a1' q2 t2 a2 t1 a1        passes  q1 t1 a1  and  q1 a1' q2 t2 a2
       0  1   1  1  1  2  2         node (0 is the parent of 1 and of 2)
       0  1   2  3  4  1  2         position_ids: the position in the token's own pass
       7  5   5  5  5  7  7         visible_until: the index at which the token's subtree ends
      -1  0   1  2  3  0  5         previous: the index of the token in front of it in its own pass

    q question, t thinking, a trained answer, a' plain copy: the answer without its thinking, as later turns see it

Where a node has several branches, the one that holds the latest pass is written first. So what later turns see
(questions and plain copies) stands together at the front of the row, then come the thinking and the answer of the last
turn, then those of the turn before it, and so on back to the first. A query thus sees a few long stretches of keys, and
only at the ends of these do blocks of attention hold pairs that are computed for nothing. In the opposite order the
branch of each earlier turn would lie between the questions that must not see it, and attention in blocks would compute
about twice as many pairs over a long conversation.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from flexmask.text.rendering import Pass, Role, is_generated
from flexmask.tree.passes import PassTable

LAYOUTS = ("one_pass", "per_turn", "keep_thinking", "last_turn")


@dataclass(frozen=True, eq=False)
class Row:
    """The passes of one conversation, or some of them where not all fit in a pack, as one sequence of S tokens.

    It holds a prefix tree in depth-first order, or several behind each other where passes begin with different tokens.

    `input_ids` (int64), `roles` (int8, values of `flexmask.text.rendering.Role`) and `loss_weights` (float32) have
    shape [S]; `loss_weights[i]` weighs the prediction of token i, and is 0 for context. `node_start`, `node_end` and
    `node_parent` (integers, shape [N]) have one entry for each of N nodes, in depth-first order: node n is the tokens
    `node_start[n]:node_end[n]` and continues node `node_parent[n]`, or nothing where that is -1 (a root). `passes` says
    which tokens each pass trains.
    """

    name: str
    passes: PassTable
    input_ids: np.ndarray
    roles: np.ndarray
    loss_weights: np.ndarray
    node_start: np.ndarray
    node_end: np.ndarray
    node_parent: np.ndarray

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def turns(self) -> tuple[int, ...]:
        """The turns whose passes it holds."""
        return tuple(self.passes.turn[self.passes.is_here].tolist())

    @property
    def is_chain(self) -> bool:
        """Whether no token has two continuations, so that the row is one pass."""
        return bool((self.node_parent == np.arange(len(self.node_parent)) - 1).all())

    @property
    def position_ids(self) -> np.ndarray:
        """int64 [S]: depth in the tree, which is the position the token has at inference."""
        positions = np.empty(len(self), dtype=np.int64)
        for start, end, parent in self._nodes():
            first = 0 if parent < 0 else positions[self.node_end[parent] - 1] + 1
            positions[start:end] = np.arange(first, first + end - start)
        return positions

    @property
    def visible_pairs(self) -> int:
        """The number of pairs (query, key) in which the query sees the key: each token sees itself and all tokens
        before it in its own pass."""
        return int(self.position_ids.sum()) + len(self)

    @property
    def visible_until(self) -> np.ndarray:
        """int32 [S]: end (exclusive) of the token's subtree; token k is visible to q iff k <= q < visible_until[k]."""
        subtree_end = self.node_end.copy()
        for node in range(len(subtree_end) - 1, -1, -1):  # children stand behind their parent
            if (parent := self.node_parent[node]) >= 0:
                subtree_end[parent] = max(subtree_end[parent], subtree_end[node])
        return np.repeat(subtree_end, self.node_end - self.node_start).astype(np.int32)

    @property
    def previous(self) -> np.ndarray:
        """int64 [S]: index of the token whose logits predict this one, -1 for a root's first token."""
        previous = np.arange(-1, len(self) - 1, dtype=np.int64)
        parents = self.node_parent
        previous[self.node_start] = np.where(parents >= 0, self.node_end[parents] - 1, -1)
        return previous

    def _nodes(self) -> Iterator[tuple[int, int, int]]:
        return zip(self.node_start.tolist(), self.node_end.tolist(), self.node_parent.tolist(), strict=True)


@dataclass(frozen=True)
class LaidOut:
    """The rows of one conversation, and in `dropped_turns` the turns dropped because their pass is longer than a pack.

    `tokens_distinct`: distinct prefixes of the passes in `rows`, the fewest tokens that an exact method computes.
    `retokenized_texts` as `flexmask.text.tokenization.TextTokenizer` counts them. `ends` are the token ids that end the
    passes in `rows`, sorted: where the model learns to stop (`flexmask.model.end_of_turn`).
    """

    rows: tuple[Row, ...]
    dropped_turns: tuple[int, ...]
    retokenized_texts: int = 0
    ends: tuple[int, ...] = ()
    tokens_distinct: int = 0


def lay_out(passes: Sequence[Pass], layout: str, pack_length: int | None = None, too_long: str = "error") -> LaidOut:
    """Lay the trained passes of one conversation out in rows of at most `pack_length` tokens (None: no limit).

    layout: "one_pass" (a tree), "per_turn" (one row a pass), "keep_thinking" (thinking stays in the history: the
        common mistake, as a baseline), "last_turn" (only the last trained pass).
    too_long: a pass longer than `pack_length` raises ("error") or is left out and reported ("drop"); where passes
        compete, with all others of the record.
    Raises ValueError naming the conversation, the turn and its length.
    """
    if layout not in LAYOUTS:
        raise ValueError(f'layout="{layout}": write one of {", ".join(LAYOUTS)}')
    if too_long not in ("error", "drop"):
        raise ValueError(f'too_long="{too_long}": write "error" or "drop"')
    if layout == "keep_thinking":
        passes = keep_thinking(passes)
    trained = [p for p in passes if p.is_trained]
    if layout == "last_turn":
        trained = list({p.candidate: p for p in trained}.values())
    fitting = [p for p in trained if pack_length is None or len(p) <= pack_length]
    dropped = [p for p in trained if pack_length is not None and len(p) > pack_length]
    if dropped and too_long == "error":
        longest = dropped[0]
        which = (
            f"{longest.where}: the pass"
            if longest.where
            else f"{longest.name}: the pass of assistant turn {longest.turn}"
        )
        raise ValueError(
            f"{which} has {len(longest):,} tokens, pack_length is "
            f'{pack_length:,}; raise it, or leave such turns out and count them with too_long="drop"'
        )
    if dropped and any(not math.isnan(p.reward) for p in trained):
        fitting, dropped = [], trained
    rows = per_turn(fitting) if layout == "per_turn" else one_pass(fitting, pack_length)
    if len(rows) > 1 and rows[0].passes.competes:
        rows = [_with_all_passes(row, rows) for row in rows]
    ends = sorted({int(p.input_ids[-1]) for p in fitting if p.ends})
    distinct = len(rows[0]) if len(rows) == 1 else _tree_of(fitting).size
    return LaidOut(tuple(rows), tuple(p.turn for p in dropped), ends=tuple(ends), tokens_distinct=distinct)


def _with_all_passes(row: Row, rows: Sequence[Row]) -> Row:
    """The row, with the passes of the others in its table."""
    others = [one.passes.elsewhere() for one in rows if one is not row]
    return replace(row, passes=PassTable.joined([row.passes, *others]))


def one_pass(passes: Sequence[Pass], pack_length: int | None = None) -> list[Row]:
    """Merge passes into trees, a row each: one row if all fit in `pack_length` tokens, else as few as greedy
    groups of neighbours give. Each group repeats the context it shares with the others, without loss. Neighbours are
    passes that follow each other or, where that makes fewer tokens, those that begin alike, as calls of several agents
    in turn do.

    Every pass must itself fit (`lay_out` sees to that).
    """
    in_time = _grouped(passes, pack_length)
    if len(in_time) > 1:
        in_order = sorted(passes, key=lambda p: p.input_ids.astype(">i8").tobytes())  # as of the lists of their tokens
        alike = _grouped(in_order, pack_length)
        if sum(tree.size for tree in alike) < sum(tree.size for tree in in_time):
            groups = sorted(
                (sorted(tree.passes, key=lambda p: p.turn) for tree in alike), key=lambda some: some[0].turn
            )
            return [_tree_of(group).to_row() for group in groups]
    return [tree.to_row() for tree in in_time]


def _grouped(passes: Sequence[Pass], pack_length: int | None) -> list["_PrefixTree"]:
    trees: list[_PrefixTree] = []
    for p in passes:
        if not trees or (pack_length is not None and trees[-1].size_with(p) > pack_length):
            trees.append(_PrefixTree())
        trees[-1].insert(p)
    return trees


def _tree_of(passes: Sequence[Pass]) -> "_PrefixTree":
    tree = _PrefixTree()
    for p in passes:
        tree.insert(p)
    return tree


def per_turn(passes: Sequence[Pass]) -> list[Row]:
    """One row a pass: the exact baseline, N forward passes over a conversation of N turns."""
    return [row for p in passes for row in one_pass([p])]


def keep_thinking(passes: Sequence[Pass]) -> list[Pass]:
    """Rewrite the passes of all turns of a conversation so that thinking stays in the history.

    Behind each generated turn comes what the template puts between that turn's answer and the next generation
    prompt. Inference never shows such a history; the layout exists to measure what that costs.
    Raises ValueError when an answer cannot be found again in the next prompt.
    """
    kept: list[Pass] = []
    for i, p in enumerate(passes):
        if i == 0:
            kept.append(p)
            continue
        earlier = passes[i - 1]
        between = slice(_end_of_copy(earlier, p), p.prompt_length)
        generated = slice(p.prompt_length, None)
        context = kept[-1]
        kept.append(
            replace(
                p,
                prompt_length=len(context) + between.stop - between.start,
                input_ids=np.concatenate([context.input_ids, p.input_ids[between], p.input_ids[generated]]),
                roles=np.concatenate([context.roles, p.roles[between], p.roles[generated]]),
                loss_weights=np.concatenate(
                    [np.zeros_like(context.loss_weights), p.loss_weights[between], p.loss_weights[generated]]
                ),
            )
        )
    return kept


def _end_of_copy(earlier: Pass, later: Pass) -> int:
    """Index in `later` right behind the plain copy of the answer that `earlier` generates."""
    answer = earlier.input_ids[earlier.roles == Role.ANSWER]
    prompt = later.input_ids[: later.prompt_length]
    start = _common_prefix(earlier.input_ids[: earlier.prompt_length], prompt)
    for at in range(start, len(prompt) - len(answer) + 1):
        if np.array_equal(prompt[at : at + len(answer)], answer):
            return at + len(answer)
    raise ValueError(
        f'{later.name}: layout="keep_thinking" cannot be formed: the answer of assistant turn {earlier.turn} does not '
        f'stand in the prompt of turn {later.turn} with the same tokens; use layout="one_pass" or layout="per_turn"'
    )


def _common_prefix(a: np.ndarray, b: np.ndarray) -> int:
    length = min(len(a), len(b))
    differs = a[:length] != b[:length]
    return int(differs.argmax()) if differs.any() else length


@dataclass
class _Node:
    input_ids: np.ndarray
    roles: np.ndarray
    loss_weights: np.ndarray
    children: list["_Node"] = field(default_factory=list)

    def split(self, at: int) -> None:
        tail = _Node(self.input_ids[at:], self.roles[at:], self.loss_weights[at:], self.children)
        self.input_ids, self.roles, self.loss_weights = self.input_ids[:at], self.roles[:at], self.loss_weights[:at]
        self.children = [tail]

    def child_starting(self, token: int) -> "_Node | None":
        return next((child for child in self.children if child.input_ids[0] == token), None)


class _PrefixTree:
    def __init__(self) -> None:
        self.root = _Node(np.empty(0, np.int64), np.empty(0, np.int8), np.empty(0, np.float32))  # holds no tokens
        self.passes: list[Pass] = []
        self.size = 0

    def size_with(self, p: Pass) -> int:
        _, _, matched = self._descend(p)
        return self.size + len(p) - matched

    def insert(self, p: Pass) -> None:
        node, inside, matched = self._descend(p)
        if inside < len(node.input_ids):
            node.split(inside)
        if matched < len(p):
            node.children.append(_Node(p.input_ids[matched:], p.roles[matched:], p.loss_weights[matched:]))
        if matched > p.prompt_length:  # context weighs nothing, and of a prompt no pass has other roles
            self._add_to_path(p, matched)
        self.passes.append(p)
        self.size += len(p) - matched

    def _descend(self, p: Pass) -> tuple[_Node, int, int]:
        """The deepest node that `p` reaches, how many of its tokens match, and how many tokens match in all."""
        node, inside, matched = self.root, 0, 0
        while inside == len(node.input_ids) and matched < len(p):
            child = node.child_starting(p.input_ids[matched])
            if child is None:
                break
            node, inside = child, _common_prefix(child.input_ids, p.input_ids[matched:])
            matched += inside
        return node, inside, matched

    def _add_to_path(self, p: Pass, matched: int) -> None:
        """A token that several passes share is one state: their loss weights add up, and a generated role wins."""
        node, done = self.root, 0
        while done < matched:
            child = node.child_starting(p.input_ids[done])
            assert child is not None  # `matched` tokens of the pass are in the tree
            node = child
            here = slice(done, done + len(node.input_ids))
            node.loss_weights = node.loss_weights + p.loss_weights[here]
            node.roles = np.where(is_generated(p.roles[here]), p.roles[here], node.roles)
            done = here.stop

    def to_row(self) -> Row:
        nodes: list[_Node] = []
        starts, parents = [], []
        pending = [(child, -1) for child in self.root.children]  # taken from the end: the latest branch first
        total = 0
        while pending:  # a stack instead of recursion: a conversation of a thousand turns is that deep
            node, parent = pending.pop()
            index = len(nodes)
            nodes.append(node)
            starts.append(total)
            parents.append(parent)
            total += len(node.input_ids)
            pending.extend((child, index) for child in node.children)
        start = np.array(starts, dtype=np.int32)
        lengths = np.array([len(node.input_ids) for node in nodes], dtype=np.int32)
        ends = {id(node): first + len(node.input_ids) for node, first in zip(nodes, starts, strict=True)}
        return Row(
            name=self.passes[0].name,
            # Each pass ends where a node does: `insert` has split the one that it ended in.
            passes=PassTable.of(self.passes, [ends[id(self._descend(p)[0])] - 1 for p in self.passes]),
            input_ids=np.concatenate([node.input_ids for node in nodes]),
            roles=np.concatenate([node.roles for node in nodes]).astype(np.int8),
            loss_weights=np.concatenate([node.loss_weights for node in nodes]).astype(np.float32),
            node_start=start,
            node_end=start + lengths,
            node_parent=np.array(parents, dtype=np.int32),
        )

"""Rules of what the three frameworks' residual networks share: blocks of convolutions with normalisations."""

from typing import NamedTuple

from model.convert.names import Rule

STAGE = "pyramid.backbone.stages.{s}.{b}"
RES5 = "roi.res5.{b}"


class BlockNames(NamedTuple):
    """How a framework names the parts of a residual block, below the block's own name.

    Attributes:
        norm: template of the normalisation after the n-th convolution.
        shortcut: the projection's convolution.
        shortcut_norm: the projection's normalisation.
        offset: the convolution that finds the offsets of a deformable one; empty where there is none.
    """

    norm: str
    shortcut: str
    shortcut_norm: str
    offset: str


def block_rules(theirs: str, names: BlockNames, ours: str = STAGE, *, writes: bool = True) -> tuple[Rule, ...]:
    """Rules of the blocks called `theirs`, with the fields {s} (stage) and {b} (block) that `ours` has."""
    rules = [
        Rule(f"{theirs}.conv{{n}}.weight", f"{ours}.conv{{n}}.weight", writes),
        Rule(f"{theirs}.{names.norm}.{{norm}}", f"{ours}.norm{{n}}.{{norm}}", writes),
        Rule(f"{theirs}.{names.shortcut}.weight", f"{ours}.shortcut.conv.weight", writes),
        Rule(f"{theirs}.{names.shortcut_norm}.{{norm}}", f"{ours}.shortcut.norm.{{norm}}", writes),
    ]
    if names.offset:
        rules.append(Rule(f"{theirs}.{names.offset}.{{wb}}", f"{ours}.conv2.offset.{{wb}}", writes))
    return tuple(rules)

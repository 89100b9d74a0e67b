"""Tables of names: fields, counting from one, whole matches, and the way back."""

import pytest

from model.convert import detectron2, mmdetection, torchvision
from model.convert.names import Rule, Table, count


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("layer1.0.conv2.weight", "stages.0.0.conv2.weight"),
        ("layer4.22.conv3.weight", "stages.3.22.conv3.weight"),
        ("head.0.bias", "convs.0.bias"),
        ("head.14.weight", "convs.7.weight"),
        ("bn.running_var", "norm.running_var"),
        ("bn.num_batches_tracked", "norm.num_batches_tracked"),
    ],
)
def test_a_rule_reads_and_writes(theirs, ours):
    table = Table(
        [
            Rule("layer{s+1}.{b}.conv{n}.weight", "stages.{s}.{b}.conv{n}.weight"),
            Rule("head.{n*2}.{wb}", "convs.{n}.{wb}"),
            Rule("bn.{norm}", "norm.{norm}"),
        ]
    )
    assert table.ours(theirs) == ours
    assert table.theirs(ours) == theirs


@pytest.mark.parametrize(
    "name",
    [
        "layer0.0.conv1.weight",  # counted from one
        "layer1.00.conv1.weight",
        "layer1.0.conv1.weight.",
        "xlayer1.0.conv1.weight",
        "layer1.0.conv1.bias",
        "layer1.1234.conv1.weight",
        "layer1.-1.conv1.weight",
        "layer1.٣.conv1.weight",
        "head.3.weight",  # ReLUs stand between
        "",
    ],
)
def test_what_a_rule_does_not_cover_is_none(name):
    rules = [
        Rule("layer{s+1}.{b}.conv{n}.weight", "stages.{s}.{b}.conv{n}.weight"),
        Rule("head.{n*2}.{wb}", "c.{n}.{wb}"),
    ]
    assert Table(rules).ours(name) is None


def test_old_names_are_read_and_not_written():
    table = Table([Rule("new.{wb}", "ours.{wb}"), Rule("old.{wb}", "ours.{wb}", writes=False)])
    assert table.ours("old.bias") == table.ours("new.bias") == "ours.bias"
    assert table.theirs("ours.bias") == "new.bias"
    assert table.theirs("other.bias") is None


def test_count_counts_different_numbers():
    assert count(["a.0.x", "a.1.x", "a.1.y", "a.2.z"], r"a\.(\d)\.[xy]") == 2


def written(rule):
    """A name of ours for a rule, its fields filled in."""
    name = rule.ours
    for field, value in {"s": "2", "b": "5", "n": "1", "i": "3", "k": "2", "wb": "bias", "norm": "weight"}.items():
        name = name.replace(f"{{{field}}}", value)
    return name


@pytest.mark.parametrize(
    "rules",
    [
        *(torchvision.rules(convs) for convs in (0, 4)),
        *(
            detectron2.rules(pyramid=pyramid, cascade=cascade, rpn_convs=convs)
            for pyramid in (True, False)
            for cascade in (True, False)
            for convs in (1, 2)
        ),
        *(mmdetection.rules(rpn_convs=convs, group=group) for convs in (1, 2) for group in ((), ("backbone", "box"))),
    ],
)
def test_every_rule_of_every_table_finds_back(rules):
    table = Table(rules)
    for rule in rules:
        if rule.writes:
            ours = written(rule)
            theirs = table.theirs(ours)
            assert theirs is not None, ours
            assert table.ours(theirs) == ours

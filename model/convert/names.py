"""Tables of parameter names that are read in both directions.

A rule is a pair of templates, the other framework's name and ours. `{s}` stands for a number, `{s+1}` and `{n*2}` for
one that the framework counts otherwise, `{wb}` for a layer's parameters and `{norm}` for those of a normalisation.
"""

import dataclasses
import re
from collections.abc import Iterable, Sequence

_FIELD = re.compile(r"\{([a-z]+)(?:([+*])(\d+))?\}")
_WORDS = {"wb": "weight|bias", "norm": "weight|bias|running_mean|running_var|num_batches_tracked"}


@dataclasses.dataclass(frozen=True)
class Rule:
    """Their name and ours.

    Attributes:
        theirs: template of the other framework's name.
        ours: template of our name, with the same fields.
        writes: also used to write their name; a rule for names of old versions only reads.
    """

    theirs: str
    ours: str
    writes: bool = True


class _Template:
    """One side of a rule."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._fields = _FIELD.findall(text)
        literals = [re.escape(part) for part in _FIELD.split(text)[::4]]
        groups = [f"({_WORDS.get(name, '0|[1-9][0-9]{0,2}')})" for name, _, _ in self._fields]
        self._pattern = re.compile("".join(part for pair in zip(literals, [*groups, ""], strict=True) for part in pair))

    def read(self, name: str) -> dict[str, str] | None:
        """The fields of a name as we count them, or None where it does not match."""
        found = self._pattern.fullmatch(name)
        if found is None:
            return None
        values = {}
        for (field, sign, amount), text in zip(self._fields, found.groups(), strict=True):
            values[field] = text
            if sign == "+":
                values[field] = str(int(text) - int(amount))
            elif sign == "*":
                number, rest = divmod(int(text), int(amount))
                values[field] = str(number) if rest == 0 else "-"
        return None if any(value.startswith("-") for value in values.values()) else values

    def write(self, values: dict[str, str]) -> str:
        """The name with these fields."""

        def fill(found: re.Match[str]) -> str:
            text = values[found[1]]
            if found[2] == "+":
                return str(int(text) + int(found[3]))
            return str(int(text) * int(found[3])) if found[2] == "*" else text

        return _FIELD.sub(fill, self._text)


class Table:
    """Rules in both directions; the first that matches counts."""

    def __init__(self, rules: Iterable[Rule]) -> None:
        """Compile the rules."""
        self._rules = [(_Template(rule.theirs), _Template(rule.ours), rule.writes) for rule in rules]

    def ours(self, name: str) -> str | None:
        """Our name for theirs, or None where no rule covers it."""
        for theirs, ours, _ in self._rules:
            values = theirs.read(name)
            if values is not None:
                return ours.write(values)
        return None

    def theirs(self, name: str) -> str | None:
        """Their name for ours, or None where they have no such parameter."""
        for theirs, ours, writes in self._rules:
            values = ours.read(name) if writes else None
            if values is not None:
                return theirs.write(values)
        return None


def layers(theirs: str, ours: str, norm: str, *, writes: bool = True) -> tuple[Rule, ...]:
    """Rules of a convolution that has a bias, or a normalisation under the name `norm` of theirs."""
    return (
        Rule(f"{theirs}.{{wb}}", f"{ours}.{{wb}}", writes),
        Rule(norm, f"{ours}.norm.{{norm}}", writes),
    )


def count(names: Iterable[str], pattern: str) -> int:
    """How many different numbers the first group of `pattern` takes among the names that match it whole."""
    found = (re.fullmatch(pattern, name) for name in names)
    return len({match[1] for match in found if match})


def parts(theirs: str, ours: str, pairs: Sequence[tuple[str, str]]) -> tuple[Rule, ...]:
    """Rules of several layers with weight and bias below one module."""
    return tuple(Rule(f"{theirs}.{one}.{{wb}}", f"{ours}.{other}.{{wb}}") for one, other in pairs)

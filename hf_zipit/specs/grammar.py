"""What a spec file says, as plain values: lines, probes, steps, blocks."""

from dataclasses import dataclass

FIXED = {".", "image", "classes"}  # axes that are never permuted

Term = tuple[str, ...]  # ("a",), ("head", "a"), (".", "a") or ("a", ".")
Expression = tuple[Term, ...]  # terms joined by "+"


@dataclass(frozen=True)
class Line:
    """One wiring line: what a module or a parameter reads and writes.

    `axes` holds one expression per axis for a bare parameter and is empty for a module.
    """

    target: str
    reads: Expression = ()
    writes: Expression = ()
    axes: tuple[Expression, ...] = ()
    number: int = 0

    def names(self) -> set[str]:
        """Every space name the line mentions."""
        return {n for e in (self.reads, self.writes, *self.axes) for term in e for n in term} - {"."}


@dataclass(frozen=True)
class Same:
    """`left = right unless module`: two names for one space where the block has no such module."""

    left: str
    right: str
    unless: str | None


@dataclass(frozen=True)
class ProbeLine:
    """`space: module.in` or `space: module.out`: the tensor in which a space is observed."""

    space: str
    module: str
    side: str
    number: int = 0


@dataclass(frozen=True)
class Step:
    """A step of the chain: a module pattern, `call:method` of the model, or `op:name`.

    `owns` are the modules and parameters a method or a small function uses, `arguments` what the step is given besides
    the tensor that is alive: `("resolution=$image",)`.
    """

    name: str
    owns: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()


@dataclass(frozen=True)
class Block:
    """Lines that repeat for every module whose path matches one of the patterns in `each`.

    `when` names a class (or base) the module must have.
    """

    each: tuple[str, ...]
    when: str | None
    sizes: dict[str, tuple[str, ...]]
    wire: tuple[Line, ...]
    same: tuple[Same, ...]
    probe: tuple[ProbeLine, ...]


@dataclass(frozen=True)
class Spec:
    """A parsed spec file, not yet bound to a model."""

    family: str
    match: tuple[str, ...]
    chain: tuple[tuple[Step, ...], ...]  # alternatives `a | b` run in the order of the model
    channels_last: bool
    stream: str
    sizes: dict[str, tuple[str, ...]]
    wire: tuple[Line, ...]
    blocks: tuple[Block, ...]
    probe: tuple[ProbeLine, ...]
    check: dict[str, int]
    text: str
    file: str

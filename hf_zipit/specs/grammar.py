"""The contents of a spec file as plain values: lines, probes, steps and blocks."""

from dataclasses import dataclass

HELD = "held"  # an axis that is free in the model, but that the spec leaves alone
FIXED_AXES = {".", "image", "classes", HELD}  # names of axes that are never permuted

Term = tuple[str, ...]  # ("a",), ("head", "a"), (".", "a") or ("a", ".")
Expression = tuple[Term, ...]  # terms joined by "+"


@dataclass(frozen=True)
class Line:
    """One wiring line: what a module or a parameter reads and writes.

    Attributes:
        target: Path of the module or parameter, relative to the block.
        reads: Expression before the arrow; without an arrow, the space that the module carries.
        writes: Expression after the arrow; empty without one.
        axes: One expression per axis, for a parameter that is wired by itself; empty for a module.
        number: Line number in the spec file.
    """

    target: str
    reads: Expression = ()
    writes: Expression = ()
    axes: tuple[Expression, ...] = ()
    number: int = 0

    def names(self) -> set[str]:
        """Every space name that the line mentions."""
        return {n for e in (self.reads, self.writes, *self.axes) for term in e for n in term} - {"."}


@dataclass(frozen=True)
class Same:
    """Two names that mean one space: `left = right unless module`, or `left = right if attribute`.

    Attributes:
        left: A name.
        right: The other name.
        unless: The module that a block must lack; `None` if any block will do.
        only: The attribute of a block that must be true; `None` if any block will do.
    """

    left: str
    right: str
    unless: str | None
    only: str | None


@dataclass(frozen=True)
class ProbeLine:
    """`space: module.in` or `space: module.out`: a tensor in which a space can be observed."""

    space: str
    module: str
    side: str
    number: int = 0


@dataclass(frozen=True)
class Step:
    """A step of the chain: a module pattern, `call:method` of the model, or `op:name`.

    Attributes:
        name: Pattern, method or function.
        owns: Modules and parameters that it uses besides the module of that name.
        arguments: What the step receives besides the output of the step before, such as `("resolution=$image",)`.
        space: Name of the space of its output, where the step says so.
    """

    name: str
    owns: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    space: str | None = None


@dataclass(frozen=True)
class Block:
    """Lines that repeat for every module whose path matches a pattern.

    Attributes:
        each: Patterns of module paths.
        when: Name of a class that the module, or one of its bases, must have.
        sizes: Group axis -> attributes of the module to read its number of groups from; the first that exists counts.
        wire: Lines for the modules inside.
        same: Pairs of names that mean one space.
        probe: Tensors in which the block's spaces can be observed.
    """

    each: tuple[str, ...]
    when: str | None
    sizes: dict[str, tuple[str, ...]]
    wire: tuple[Line, ...]
    same: tuple[Same, ...]
    probe: tuple[ProbeLine, ...]


@dataclass(frozen=True)
class Spec:
    """A parsed spec file, not yet bound to a model.

    Attributes:
        family: Name of the model family.
        match: Qualified names of the classes that the spec describes.
        chain: Steps whose composition is the model; alternatives `a | b` run in the order of the model. If the last is
            `call:forward`, the others are modules in which the model's own forward can be interrupted.
        channels_last: Whether feature maps are `(B, H, W, C)`.
        stream: Name of the space that enters the first block.
        sizes: Group axis -> attributes of the model to read its number of groups from.
        wire: Lines for the modules outside the blocks.
        blocks: Lines that repeat.
        probe: Tensors in which spaces can be observed.
        check: Model -> its number of spaces, for the tests of the spec.
        text: The file's text.
        file: The file's name, for error messages.
    """

    family: str
    match: tuple[str, ...]
    chain: tuple[tuple[Step, ...], ...]
    channels_last: bool
    stream: str
    sizes: dict[str, tuple[str, ...]]
    wire: tuple[Line, ...]
    blocks: tuple[Block, ...]
    probe: tuple[ProbeLine, ...]
    check: dict[str, int]
    text: str
    file: str

    @property
    def interrupts(self) -> bool:
        """Whether the steps are parts of the model's own forward."""
        return bool(self.chain) and self.chain[-1][0].name == "call:forward"

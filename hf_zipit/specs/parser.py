"""Parse spec files: one YAML file per model family describes how its feature spaces are wired.

`model_specs/README.md` describes the grammar. A spec is data: it is read with a safe loader, an error about an unknown
key or one given twice names file and line, and nothing in a spec is ever executed. No model is needed here.
"""

import re
from functools import cache, lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from hf_zipit.errors import SpecError
from hf_zipit.files import documents
from hf_zipit.specs.grammar import Block, Expression, Line, ProbeLine, Same, Spec, Step
from hf_zipit.text import first_line

_NAME = re.compile(r"\.|[A-Za-z_][\w.]*")
_SAME = re.compile(r"(?P<left>[\w.]+) = (?P<right>[\w.]+)(?: unless (?P<unless>[\w.]+)| if (?P<only>[\w.]+))?")
_STEP = re.compile(r"(?P<name>(call:|op:)?[\w.{}]+)(\((?P<inside>[^()]*)\))?(\s*->\s*(?P<space>[\w.]+))?")
_ARGUMENT = re.compile(r"\w+=(none|\$image|\$grid|\$config\.\w+)")
_PROBE = re.compile(r"(?P<module>[\w.]+)\.(?P<side>in|out)")
_NUMBER = re.compile(r"[0-9]{1,9}")
_TOP = {"family", "match", "chain", "channels", "stream", "sizes", "wire", "blocks", "probe", "check"}
_BLOCK = {"each", "when", "sizes", "wire", "same", "probe"}


def folder() -> Path:
    """The folder of the shipped spec files: inside the wheel, or beside the package in a checkout."""
    inside = Path(str(resources.files("hf_zipit"))) / "model_specs"
    return inside if inside.is_dir() else inside.parent.parent / "model_specs"


def list_specs() -> list[Spec]:
    """Every spec file that ships with the package, sorted by file name.

    >>> [s.family for s in list_specs()][:1]
    ['timm-resnet']
    """
    return [read(path) for path in sorted(folder().glob("*.yaml"))]


def read(path: str | Path) -> Spec:
    """Read one spec file.

    Raises:
        SpecError: the file is missing, is not YAML, or does not follow the grammar.
    """
    path = Path(path)
    try:
        text = documents.read_text(path)
    except ValueError as error:
        raise SpecError(f"cannot read the spec file {path}: {error}") from None
    return parse(text, path.name)


def parse(text: str, file: str = "<spec>") -> Spec:
    """Parse the text of a spec file.

    Args:
        text: The YAML text.
        file: Name of the file for error messages.

    Raises:
        SpecError: the text is not YAML, or does not follow the grammar.
    """
    return _parsed(text, file)


@lru_cache(maxsize=64)  # every merge looks through all shipped files
def _parsed(text: str, file: str) -> Spec:
    return _Parser(file, text).spec()


class _Parser:
    def __init__(self, file: str, text: str) -> None:
        self.file = file
        self.text = text
        self.lines: dict[tuple[str, ...], int] = {}  # path of keys -> line number

    def error(self, where: tuple[str, ...], message: str) -> SpecError:
        return SpecError(f"{self.file}:{self.lines.get(where, 1)}: {message}")

    def spec(self) -> Spec:
        try:
            top = self.plain(yaml.compose(self.text, documents.PlainLoader), ())
        except yaml.MarkedYAMLError as error:
            line = error.problem_mark.line + 1 if error.problem_mark else 1
            raise SpecError(f"{self.file}:{line}: not valid YAML: {error.problem or error}") from None
        except (yaml.YAMLError, RecursionError) as error:
            raise SpecError(f"{self.file}: not valid YAML: {first_line(error)}") from None
        if not isinstance(top, dict):
            raise SpecError(f"{self.file}: a spec file is a mapping with the keys {', '.join(sorted(_TOP))}")
        self.known(top, _TOP, (), {"family", "match", "wire", "check"})
        check = top["check"]
        if not isinstance(check, dict) or not check or not all(_NUMBER.fullmatch(str(v)) for v in check.values()):
            raise self.error(("check",), "check: names model architectures and their number of spaces")
        return Spec(
            family=str(top["family"]),
            match=tuple(self.listed(top["match"])),
            chain=self.chain(top),
            channels_last=self.channels_last(top),
            stream=str(top.get("stream", "image")),
            sizes=self.sizes(top),
            wire=self.wire(top["wire"], ("wire",)),
            blocks=tuple(self.block(b, ("blocks", str(i))) for i, b in enumerate(top.get("blocks", []))),
            probe=self.probes(top.get("probe", {}), ("probe",)),
            check={k: int(v) for k, v in check.items()},
            text=self.text,
            file=self.file,
        )

    def plain(self, node: Any, where: tuple[str, ...]) -> Any:
        """Convert a YAML node to dicts, lists and strings, and keep the line of each key."""
        if isinstance(node, yaml.MappingNode):
            out: dict[str, Any] = {}
            for key, value in node.value:
                here = (*where, str(key.value))
                self.lines[here] = key.start_mark.line + 1
                if not isinstance(key, yaml.ScalarNode):
                    raise self.error(here, "a key is a word, not a list or a mapping")
                out[key.value] = self.plain(value, here)
            return out
        if isinstance(node, yaml.SequenceNode):
            return [self.plain(value, (*where, str(i))) for i, value in enumerate(node.value)]
        return None if node is None else str(node.value)

    def known(self, mapping: dict[str, Any], keys: set[str], where: tuple[str, ...], needed: set[str]) -> None:
        for key in mapping:
            if key not in keys:
                raise self.error((*where, key), f"unknown key '{key}'; known: {', '.join(sorted(keys))}")
        if needed - set(mapping):
            raise self.error(where, f"missing key '{sorted(needed - set(mapping))[0]}'")

    def listed(self, value: Any) -> list[str]:
        return [str(v) for v in value] if isinstance(value, list) else [str(value)]

    def block(self, block: Any, where: tuple[str, ...]) -> Block:
        if not isinstance(block, dict):
            raise self.error(where[:1], "each entry of blocks: is a mapping that starts with 'each:'")
        self.known(block, _BLOCK, where, {"each", "wire"})
        same = []
        for text in self.listed(block.get("same", [])):
            found = _SAME.fullmatch(text)
            if not found:
                known = "'a = b', 'a = b unless module' or 'a = b if attribute'"
                raise self.error((*where, "same"), f"'{text}' is not of the form {known}")
            same.append(Same(**found.groupdict()))
        return Block(
            each=tuple(self.listed(block["each"])),
            when=self.word(block, "when", where),
            sizes=self.sizes(block, where),
            wire=self.wire(block["wire"], (*where, "wire")),
            same=tuple(same),
            probe=self.probes(block.get("probe", {}), (*where, "probe")),
        )

    def channels_last(self, top: dict[str, Any]) -> bool:
        value = top.get("channels", "first")
        if value not in ("first", "last"):
            raise self.error(("channels",), f"channels: is 'first' or 'last', not '{value}'")
        return bool(value == "last")

    def chain(self, top: dict[str, Any]) -> tuple[tuple[Step, ...], ...]:
        chain = tuple(self.steps(entry) for entry in self.listed(top.get("chain", [])))
        interrupts = bool(chain) and chain[-1][0].name == "call:forward"
        for step in (step for steps in chain for step in steps):
            plain = ":" not in step.name
            if step.owns and plain and not interrupts:
                raise self.error(
                    ("chain",),
                    f"cannot read '{step.owns[0]}' in the step '{step.name}': only call: and op: take module names, "
                    "and modules in a chain that ends with call:forward",
                )
            if interrupts and (step.arguments or not plain) and step is not chain[-1][0]:
                raise self.error(
                    ("chain",), f"'{step.name}': in a chain that ends with call:forward, steps are modules"
                )
        return chain

    def steps(self, text: str) -> tuple[Step, ...]:
        steps = tuple(self.step(part.strip()) for part in text.split("|"))
        if len(steps) > 1 and any(":" in step.name for step in steps):
            raise self.error(
                ("chain",), f"'{text}': '|' joins modules only, because only modules have an order in the model"
            )
        return steps

    def step(self, text: str) -> Step:
        found = _STEP.fullmatch(text)
        if not found:
            raise self.error(("chain",), f"'{text}' is not a step: expected a module, call:method(names) or op:name")
        inside = [part.strip() for part in (found["inside"] or "").split(",") if part.strip()]
        owns = tuple(part for part in inside if "=" not in part)
        arguments = tuple(part for part in inside if "=" in part)
        bad = [a for a in arguments if not _ARGUMENT.fullmatch(a)] + [o for o in owns if not _NAME.fullmatch(o)]
        if bad:
            known = "key=none, key=$image, key=$grid or key=$config.name, or the names of modules and parameters"
            raise self.error(("chain",), f"cannot read '{bad[0]}' in the step '{text}': expected {known}")
        return Step(found["name"], owns, arguments, found["space"])

    def word(self, mapping: dict[str, Any], key: str, where: tuple[str, ...]) -> str | None:
        value = mapping.get(key)
        if value is not None and not isinstance(value, str):
            raise self.error((*where, key), f"{key}: is a word, not a list or a mapping")
        return value

    def sizes(self, mapping: dict[str, Any], where: tuple[str, ...] = ()) -> dict[str, tuple[str, ...]]:
        sizes = mapping.get("sizes") or {}
        if not isinstance(sizes, dict):
            raise self.error((*where, "sizes"), "sizes: is a mapping from a group axis to attributes of the model")
        return {name: tuple(self.listed(sources)) for name, sources in sizes.items()}

    def wire(self, lines: Any, where: tuple[str, ...]) -> tuple[Line, ...]:
        if not isinstance(lines, dict):
            raise self.error(where, "wire: is a mapping from module to 'reads -> writes'")
        return tuple(self.line(target, rule, (*where, target)) for target, rule in lines.items())

    def line(self, target: str, rule: Any, where: tuple[str, ...]) -> Line:
        number = self.lines.get(where, 1)
        if isinstance(rule, dict) or rule == []:
            raise self.error(where, f"'{target}' needs 'reads -> writes', or a list with one name for each axis")
        if isinstance(rule, list):
            return Line(target, axes=tuple(self.expression(str(r), where) for r in rule), number=number)
        reads, arrow, writes = str(rule).partition("->")
        return Line(
            target, self.expression(reads, where), self.expression(writes, where) if arrow else (), number=number
        )

    def expression(self, text: str, where: tuple[str, ...]) -> Expression:
        terms = []
        for part in text.split("+"):
            part = part.strip()
            inner = part[1:-1] if part.startswith("(") and part.endswith(")") else part
            names = tuple(inner.split())
            if len(names) != (2 if inner is not part else 1) or not all(_NAME.fullmatch(n) for n in names):
                raise self.error(where, f"cannot read '{part}': expected a name, '.', '(group unit)' or '(. unit)'")
            terms.append(names)
        return tuple(terms)

    def probes(self, probes: Any, where: tuple[str, ...]) -> tuple[ProbeLine, ...]:
        out = []
        if probes and not isinstance(probes, dict):
            raise self.error(where, "probe: is a mapping from a space to 'module.in' or 'module.out'")
        for space, points in (probes or {}).items():
            for point in self.listed(points):
                found = _PROBE.fullmatch(point)
                if not found:
                    raise self.error((*where, space), f"'{point}' is not of the form 'module.in' or 'module.out'")
                out.append(ProbeLine(space, found["module"], found["side"], self.lines.get((*where, space), 1)))
        return tuple(out)


def matches(spec: Spec, class_names: list[str]) -> bool:
    """Whether the spec describes a class, given the qualified names of the class and its bases."""
    return any(name in spec.match for name in class_names)


@cache
def pattern(text: str) -> re.Pattern[str]:
    """A regular expression for a path pattern such as `layer{s}.{b}`, whose placeholders stand for integers."""
    return re.compile(re.sub(r"\\\{\w+\\\}", r"\\d+", re.escape(text)))

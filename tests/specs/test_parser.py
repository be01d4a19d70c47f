import pytest

from hf_zipit.errors import SpecError
from hf_zipit.specs import parser as specs
from hf_zipit.specs.grammar import ProbeLine, Step

GOOD = """\
family: toy
match: [toy.Net]
chain: [a, b]
wire:
  a: image -> x
  b: x -> classes
probe:
  x: b.in
check:
  net: 1
"""


def test_a_line_is_parsed_into_what_it_reads_and_writes():
    spec = specs.parse(
        GOOD + "blocks:\n- each: layers.{i}\n  wire: {qkv: 'x -> (h q) + (h q) + (h v)', t: [., ., x]}\n"
    )
    qkv, bare = spec.blocks[0].wire
    assert qkv.reads == (("x",),)
    assert qkv.writes == (("h", "q"), ("h", "q"), ("h", "v"))
    assert bare.axes == (((".",),), ((".",),), (("x",),))
    assert spec.probe[0] == ProbeLine("x", "b", "in", 8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("family: toy", "famly: toy"), "toy.yaml:1: unknown key 'famly'"),
        (("  b: x", "  a: x"), "toy.yaml:6: not valid YAML: the key 'a' is given twice"),
        (("x -> classes", "x y -> classes"), "toy.yaml:6: cannot read 'x y'"),
        (("x -> classes", "(x -> classes"), "toy.yaml:6: cannot read '(x'"),
        (("match: [toy.Net]\n", ""), "missing key 'match'"),
        (("b.in", "b.middle"), "toy.yaml:8: 'b.middle' is not of the form"),
        (("net: 1", "net: many"), "toy.yaml:9: check:"),
        (("wire:", "wire: ["), "not valid YAML"),
    ],
)
def test_a_malformed_spec_is_refused_with_file_and_line(change, message):
    with pytest.raises(SpecError) as error:
        specs.parse(GOOD.replace(*change), "toy.yaml")
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("image -> x", "[]"), "toy.yaml:5: 'a' needs 'reads -> writes', or a list"),
        (("image -> x", "{b: c}"), "toy.yaml:5: 'a' needs 'reads -> writes', or a list"),
        (("  a: image", "  [a]: image"), "toy.yaml:5: a key is a word"),
        (("image -> x", "*x"), "toy.yaml:5: not valid YAML: the alias '*x' is not supported"),
        (("net: 1", "net: ²"), "check: names model architectures"),
        (("check:", "sizes: 3\ncheck:"), "toy.yaml:9: sizes: is a mapping"),
        (("  x: b.in", "- b.in"), "toy.yaml:7: probe: is a mapping"),
        (("check:", "blocks:\n- each: l\n  wire: {a: x}\n  when: [A]\ncheck:"), "toy.yaml:12: when: is a word"),
        (("wire:", "wire: " + "[" * 2000), "not valid YAML"),
    ],
)
def test_other_kinds_of_values_than_a_key_takes_are_refused(change, message):
    with pytest.raises(SpecError) as error:
        specs.parse(GOOD.replace(*change), "toy.yaml")
    assert message in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_a_file_that_is_no_small_text_is_refused(tmp_path):
    (tmp_path / "a.yaml").write_bytes(b"\xff")
    with pytest.raises(SpecError, match="it is not text in UTF-8"):
        specs.read(tmp_path / "a.yaml")
    (tmp_path / "a.yaml").write_text("x" * 2**21)
    with pytest.raises(SpecError, match="at most 1048576 are read"):
        specs.read(tmp_path / "a.yaml")
    with pytest.raises(SpecError, match="it is not a file"):
        specs.read(tmp_path)


def test_bad_block_entries_are_refused():
    with pytest.raises(SpecError, match="'a is b' is not of the form"):
        specs.parse(GOOD + "blocks:\n- each: l\n  wire: {a: x}\n  same: [a is b]\n")
    with pytest.raises(SpecError, match="unknown key 'if'"):
        specs.parse(GOOD + "blocks:\n- each: l\n  wire: {a: x}\n  if: Conv2d\n")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(SpecError, match=r"nothing\.yaml"):
        specs.read(tmp_path / "nothing.yaml")


def test_patterns_take_integers_only():
    assert specs.pattern("layer{s}.{b}").fullmatch("layer1.10")
    assert not specs.pattern("layer{s}.{b}").fullmatch("layer1.x")
    assert not specs.pattern("layer{s}.{b}").fullmatch("layer1.1.conv1")


def test_steps_are_modules_methods_and_small_functions():
    text = GOOD.replace("chain: [a, b]", 'chain: ["l{i}", "call:embed(t, p)", "op:first_token"]')
    assert specs.parse(text).chain == ((Step("l{i}"),), (Step("call:embed", ("t", "p")),), (Step("op:first_token"),))
    with pytest.raises(SpecError, match="'call embed' is not a step"):
        specs.parse(GOOD.replace("chain: [a, b]", "chain: [call embed]"))


def test_steps_take_arguments_and_alternatives():
    text = GOOD.replace("chain: [a, b]", 'chain: ["l{i}(size=$image, mask=none) | m.{i}", "op:classify_tokens(b, c)"]')
    assert specs.parse(text).chain == (
        (Step("l{i}", (), ("size=$image", "mask=none")), Step("m.{i}")),
        (Step("op:classify_tokens", ("b", "c")),),
    )


@pytest.mark.parametrize(
    ("chain", "message"),
    [
        ("a(x=3)", "cannot read 'x=3' in the step 'a"),
        ("a(b)", "cannot read 'b' in the step 'a"),
        ("a | op:first_token", "joins modules only"),
    ],
)
def test_arguments_that_cannot_be_read_are_refused(chain, message):
    with pytest.raises(SpecError, match=message):
        specs.parse(GOOD.replace("chain: [a, b]", f'chain: ["{chain}"]'))


def test_channels_are_first_or_last():
    assert specs.parse(GOOD + "channels: last\n").channels_last
    with pytest.raises(SpecError, match="'first' or 'last', not 'middle'"):
        specs.parse(GOOD + "channels: middle\n")

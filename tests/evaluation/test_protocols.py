"""The evaluation protocols against plain computations."""

import json

import pytest
import torch
from safetensors.torch import save_file
from torch.nn.functional import cosine_similarity

import hf_zipit
from hf_zipit.errors import DataError, OptionError
from hf_zipit.evaluation.evaluate import evaluate
from hf_zipit.evaluation.protocols import ClassEmbeddings, own_classes, read_class_embeddings
from hf_zipit.sources.load import load_source
from tests.helpers.models import images, tiny

WIDTH = 5  # of the tiny models' outputs


def embeddings(*sizes, seed=0, **options):
    generator = torch.Generator().manual_seed(seed)
    return ClassEmbeddings(
        {task: torch.randn(n, WIDTH, generator=generator) for task, n in zip("ab", sizes, strict=True)}, **options
    )


@pytest.fixture(scope="module")
def parents():
    return [tiny("resnet18", seed) for seed in (0, 1)]


@pytest.fixture(scope="module")
def merged(parents):
    return hf_zipit.merge(parents, images(32), tasks=["a", "b"])


def test_heads_are_compared_by_cosine():
    """Unequal splits; per task among its classes, joint by softmax of 100 cosines per task."""
    outputs = {task: torch.randn(6, WIDTH, generator=torch.Generator().manual_seed(n)) for n, task in enumerate("ab")}
    protocol = embeddings(3, 7)
    scores, joint = protocol(outputs)
    for i in range(6):
        both = []
        for task, n in (("a", 3), ("b", 7)):
            cosines = [cosine_similarity(outputs[task][i], protocol.vectors[task][c], dim=0) for c in range(n)]
            assert scores[task][i].argmax() == torch.stack(cosines).argmax()
            both += torch.stack([100 * c for c in cosines]).softmax(0).tolist()
        assert joint[i].argmax() == torch.tensor(both).argmax()
    assert joint.shape == (6, 10)


def test_averaged_heads_answer_with_one_embedding():
    outputs = {task: torch.randn(6, WIDTH, generator=torch.Generator().manual_seed(n)) for n, task in enumerate("ab")}
    protocol = embeddings(3, 7, average=True)
    scores, joint = protocol(outputs)
    for i in range(6):
        one = (outputs["a"][i] + outputs["b"][i]) / 2
        a, b = (cosine_similarity(one[None], protocol.vectors[task]) for task in "ab")
        torch.testing.assert_close(joint[i], torch.cat([a, b]))
        torch.testing.assert_close(scores["b"][i], b)


def test_own_classes_is_softmax_per_task_and_argmax_over_all():
    outputs = {"a": torch.tensor([[3.0, 0.0, 0.0]]), "b": torch.tensor([[9.0, 9.0]])}
    assert own_classes(outputs)[1].argmax() == 0  # 0.91 against 0.5, though 9 > 3


@pytest.mark.parametrize("average", [False, True])
def test_evaluation_with_class_embeddings_of_arbitrary_labels(merged, parents, average):
    """Labels 40, 7 and 12 are task a's classes 0, 1, 2; labels 3 and 99 task b's; 5 belongs to none."""
    ids = {"a": [40, 7, 12], "b": [3, 99]}
    protocol = embeddings(3, 2, ids=ids, average=average)
    pixels = torch.cat(images(24, seed=5))
    labels = torch.tensor([40, 7, 12, 3, 99, 5] * 4)
    rows = {
        row.model: row
        for row in evaluate(
            merged, [(pixels, labels)], parents=[load_source(p) for p in parents], class_embeddings=protocol
        )
    }
    with torch.no_grad():
        scores, joint = protocol(merged(pixels).task_logits)
    a = [i for i in range(24) if labels[i] in torch.tensor(ids["a"])]
    right = sum(ids["a"][scores["a"][i].argmax()] == labels[i] for i in a)
    assert rows["merged"].tasks["a"] == pytest.approx(float(right) / len(a))
    known = [i for i in range(24) if labels[i] != 5]
    right = sum((ids["a"] + ids["b"])[joint[i].argmax()] == labels[i] for i in known)
    assert rows["merged"].joint == pytest.approx(float(right) / len(known))
    assert set(rows) == {"merged", "parent:a", "parent:b", "ensemble"}


def test_unequal_splits_of_one_data_set_by_label(merged):
    """Task a has the labels 8, 2 and 5, task b 0, 1, 3, 4; named in the order of the heads' classes."""
    pixels, labels = torch.cat(images(27, seed=6)), torch.arange(27) % 9
    ids = [[8, 2, 5], [0, 1, 3, 4]]
    (row,) = evaluate(merged, [(pixels, labels)], class_ids=ids)
    with torch.no_grad():
        answers = merged(pixels).task_logits["b"].argmax(1)
    mine = [i for i in range(27) if int(labels[i]) in ids[1]]
    right = sum(int(answers[i]) < 4 and ids[1][answers[i]] == labels[i] for i in mine)
    assert row.tasks["b"] == pytest.approx(float(right) / len(mine))
    with pytest.raises(OptionError, match="1 lists of class ids for 2 tasks"):
        evaluate(merged, [(pixels, labels)], class_ids=ids[:1])
    for wrong in ([8, 2, 2], [8, 2, 5, 6, 7, 0]):
        with pytest.raises(OptionError, match=r"class ids .* of task 'a': give 5 different ids"):
            evaluate(merged, [(pixels, labels)], class_ids=[wrong, ids[1]])


def test_a_file_of_class_embeddings(tmp_path):
    file = tmp_path / "classes.safetensors"
    save_file({"a": torch.ones(2, 3), "b": torch.ones(4, 3), "b.ids": torch.tensor([9, 8, 7, 6])}, file)
    protocol = read_class_embeddings(file, average=True)
    assert protocol.classes("a") == {0: 0, 1: 1}
    assert protocol.classes("b") == {9: 0, 8: 1, 7: 2, 6: 3}
    assert protocol.average
    with pytest.raises(DataError, match="no class embeddings for task 'c', only for a, b"):
        protocol.classes("c")
    with pytest.raises(DataError, match="cannot read the class embeddings"):
        read_class_embeddings(tmp_path / "nothing")


def test_class_embeddings_that_do_not_fit_are_refused(merged):
    with pytest.raises(DataError, match="with the same D for all tasks"):
        ClassEmbeddings({"a": torch.ones(2, 3), "b": torch.ones(2, 4)})
    with pytest.raises(DataError, match="1 labels for 2 classes of 'a'"):
        ClassEmbeddings({"a": torch.ones(2, 3)}, {"a": [1]})
    pixels = torch.cat(images(8))
    wide = ClassEmbeddings({"a": torch.ones(2, 9), "b": torch.ones(2, 9)})
    with pytest.raises(DataError, match="have 9 values, the outputs of 'a' 5"):
        evaluate(merged, [(pixels, torch.arange(8) % 2)], class_embeddings=wide)


@pytest.mark.slow
def test_the_command_takes_class_embeddings(run, digits, digits_data, tmp_path):
    out, file = tmp_path / "merged", tmp_path / "classes.safetensors"
    options = ["--num-images", 32, "--task", "low", "--task", "high", "-o", out]
    assert run("merge", *digits, "--data", digits_data, *options)[0] == 0
    high = {"high": torch.eye(5), "high.ids": torch.arange(5, 10)}
    save_file({"low": torch.eye(5), **high}, file)  # the largest cosine with a unit vector is the largest logit
    plain = json.loads(run("eval", out, "--data", digits_data, "--json")[1])["rows"]
    found = json.loads(run("eval", out, "--data", digits_data, "--class-embeddings", file, "--json")[1])["rows"]
    assert [row["tasks"] for row in found] == [row["tasks"] for row in plain]
    code, _, err = run("eval", out, "--data", digits_data, "--average-heads")
    assert code == 2
    assert "needs --class-embeddings" in err

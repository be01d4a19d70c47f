"""Adapters of PEFT as models to merge."""

import json
import warnings

import peft
import pytest
import torch
import transformers
import yaml

import hf_zipit
from hf_zipit.errors import SourceError
from hf_zipit.merging.dry_run import plan_merge
from hf_zipit.recipe import Recipe
from hf_zipit.saving.save import save
from hf_zipit.sources import adapters
from hf_zipit.sources.load import load_source
from hf_zipit.sources.outline import outline
from tests.helpers.models import hf_vit, images


def base_in(folder):
    hf_vit(0).save_pretrained(folder)
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def adapted(base, folder, seed=0, classes=3, **options):
    """An adapter with random weights, saved as a trainer does; returns what PEFT itself makes of it."""
    torch.manual_seed(seed)
    config = peft.LoraConfig(
        **{"r": 4, "target_modules": ["q_proj", "v_proj"], "modules_to_save": ["classifier"], **options}
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = transformers.ViTForImageClassification.from_pretrained(
            base, num_labels=classes, ignore_mismatched_sizes=True
        )
        model = peft.get_peft_model(model, config)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora" in name or "modules_to_save" in name:
                value.normal_(std=0.1)
    model.save_pretrained(folder)
    return model.merge_and_unload().eval()


@pytest.fixture
def base(tmp_path):
    return base_in(tmp_path / "base")


def test_an_adapter_is_merged_as_peft_merges_it(base, tmp_path):
    theirs = adapted(base, tmp_path / "adapter")
    ours = load_source(tmp_path / "adapter")
    assert ours.labels == ["LABEL_0", "LABEL_1", "LABEL_2"]
    assert ours.input_size == (3, 32, 32)
    assert ours.model.state_dict().keys() == theirs.state_dict().keys()
    assert all(torch.equal(ours.model.state_dict()[name], value) for name, value in theirs.state_dict().items())


def test_without_a_classifier_of_its_own_an_adapter_has_that_of_its_base(base, tmp_path):
    adapted(base, tmp_path / "adapter", classes=5, modules_to_save=None)
    state = load_source(tmp_path / "adapter").model.state_dict()
    assert torch.equal(state["classifier.weight"], hf_vit(0).state_dict()["classifier.weight"])


def test_two_adapters_are_merged_by_their_differences_to_the_base_that_they_name(base, tmp_path):
    refs = []
    for seed in (1, 2):
        adapted(base, tmp_path / f"adapter{seed}", seed, classes=seed + 2)
        refs.append(str(tmp_path / f"adapter{seed}"))
    merged = hf_zipit.merge(refs, images(60), method="task-arithmetic", scale=1.0, calibrate="none")
    states = [load_source(ref).model.state_dict() for ref in refs]
    start = hf_vit(0).state_dict()
    name = "vit.layers.0.attention.q_proj.weight"
    wanted = sum(state[name] for state in states) - start[name]
    torch.testing.assert_close(merged.state_dict()[f"trunk.{name}"], wanted)
    assert [len(head["id2label"]) for head in merged.config.heads] == [3, 4]
    assert plan_merge(Recipe(sources=refs, method="average")).parameters == sum(p.numel() for p in merged.parameters())


def test_an_adapter_that_cannot_be_merged_is_refused_with_the_way_out(base, tmp_path, monkeypatch):
    folder = tmp_path / "adapter"
    adapted(base, folder)
    config = json.loads((folder / "adapter_config.json").read_text())

    def changed(**values):
        (folder / "adapter_config.json").write_text(json.dumps({**config, **values}))

    changed(base_model_name_or_path=str(tmp_path / "nowhere"))
    with pytest.raises(SourceError, match=r"no model at '.*nowhere', its base_model_name_or_path"):
        load_source(folder)
    changed(base_model_name_or_path=None)
    with pytest.raises(SourceError, match="names no base_model_name_or_path: merge the adapter and save the model"):
        load_source(folder)
    changed(target_modules=["o_proj"])
    with pytest.raises(SourceError, match=r"does not fit .*lora_A.weight.* is only in one of them"):
        load_source(folder)
    changed()
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(SourceError, match=r"has no adapter_model.safetensors"):
        load_source(folder)
    monkeypatch.setattr(adapters, "find_spec", lambda name: None)
    with pytest.raises(SourceError, match=r"pip install 'hf-zipit\[peft\]'"):
        load_source(folder)


def test_an_adapter_of_the_hub_cannot_name_a_folder_of_this_machine(base, tmp_path):
    adapted(base, tmp_path / "adapter")
    origin = {"id": "user/adapter", "folder": None, "revision": "0" * 40}
    with pytest.raises(SourceError, match="there is no model at"):
        adapters.read_adapter(tmp_path / "adapter", "adapter", origin, hf_zipit.sources.access.NOTHING)


def test_adapters_of_the_hub_find_their_base_there(base, tmp_path, hub):
    theirs = []
    for seed in (1, 2):
        folder = tmp_path / f"adapter{seed}"
        theirs.append(adapted(base, folder, seed))
        config = json.loads((folder / "adapter_config.json").read_text())
        (folder / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "lab/base"}))
        (folder / "README.md").write_text("---\nbase_model: lab/base\nlibrary_name: peft\n---\n")
        hub.add(f"user/adapter{seed}", folder)
    hub.add("lab/base", base)
    refs = ["user/adapter1", "user/adapter2"]
    ours = load_source(refs[0])
    assert all(torch.equal(ours.model.state_dict()[name], value) for name, value in theirs[0].state_dict().items())
    assert ours.origin["id"] == refs[0]
    merged = hf_zipit.merge(refs, method="tsv", calibrate="none")
    assert merged.config.zipit["recipe"]["base"]["id"] == "lab/base"
    assert plan_merge(Recipe(sources=refs, method="tsv")).parameters == sum(p.numel() for p in merged.parameters())


def test_the_classes_of_an_adapter_are_never_those_of_its_base(base, tmp_path):
    folder = tmp_path / "adapter"
    adapted(base, folder, classes=5)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "id2label": {str(i): f"pet{i}" for i in range(5)}}))
    assert load_source(folder).labels == [f"LABEL_{i}" for i in range(5)]
    (folder / "config.json").write_text(json.dumps({"id2label": {str(i): f"bird{i}" for i in range(5)}}))
    assert load_source(folder).labels == [f"bird{i}" for i in range(5)]


def test_adapters_without_cards_name_their_base_too(base, tmp_path):
    refs = []
    for seed in (1, 2):
        adapted(base, tmp_path / f"adapter{seed}", seed)
        (tmp_path / f"adapter{seed}" / "README.md").unlink()
        refs.append(tmp_path / f"adapter{seed}")
    assert hf_zipit.merge(refs, method="tsv", calibrate="none").config.zipit["recipe"]["base"]["folder"] == "base"


def test_an_image_processor_is_asked_for(base, tmp_path):
    adapted(base, tmp_path / "adapter")
    (base / "preprocessor_config.json").unlink()
    with pytest.raises(SourceError, match=r"has a preprocessor_config.json: save the image processor there"):
        load_source(tmp_path / "adapter")


def test_an_adapter_for_layers_of_other_names_says_what_to_do(base, tmp_path):
    folder = tmp_path / "adapter"
    adapted(base, folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "target_modules": ["query", "value"]}))
    with pytest.raises(SourceError, match="its layers may have other names, as those of transformers 4"):
        load_source(folder)


def test_a_model_beside_an_adapter_is_planned_as_a_model(base, tmp_path, hub):
    adapted(base, tmp_path / "adapter")
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        (base / file).write_bytes((tmp_path / "adapter" / file).read_bytes())
    hub.add("user/both", base)
    source, missing = outline("user/both", hf_zipit.sources.access.NOTHING)
    assert missing > 0  # no weights are downloaded for a plan
    assert len(source.labels) == 5


def test_the_recipe_names_a_base_of_the_hub_by_its_id_alone(base, tmp_path, hub):
    refs = []
    for seed in (1, 2):
        adapted(base, tmp_path / f"adapter{seed}", seed)
        refs.append(tmp_path / f"adapter{seed}")
    hub.add("lab/base", base)
    folder = save(hf_zipit.merge(refs, base="lab/base", method="tsv", calibrate="none"), tmp_path / "merged")
    recorded = yaml.safe_load((folder / "zipit_config.yml").read_text())["base"]
    assert recorded["id"] == "lab/base"
    assert "path" not in recorded

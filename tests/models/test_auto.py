"""What `import hf_zipit` makes known to timm and transformers, and when. Each order of imports needs a new process."""

import subprocess
import sys

import pytest

BUILD = """
model = timm.create_model("cifar_resnet20", depth=8)
assert timm.is_model("cifar_vgg11"), "cifar_vgg11 is unknown"
print(type(model).__module__)
"""


def printed(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(
    "imports",
    [
        "import hf_zipit, timm",
        "import timm, hf_zipit",
        "import hf_zipit; import timm.models.resnet; import timm",
        "import hf_zipit, transformers; transformers.AutoModelForImageClassification; import timm",
    ],
)
@pytest.mark.slow
def test_timm_builds_our_architectures_in_any_order_of_imports(imports):
    assert printed(f"{imports}{BUILD}") == "hf_zipit.models.cifar_resnet"


@pytest.mark.parametrize("imports", ["import hf_zipit, transformers", "import transformers, hf_zipit"])
@pytest.mark.slow
def test_transformers_knows_merges_in_any_order_of_imports(imports):
    code = "transformers.AutoModelForImageClassification; print(transformers.AutoConfig.for_model('zipit').model_type)"
    assert printed(f"{imports}; {code}") == "zipit"


@pytest.mark.slow
def test_the_import_loads_no_library_and_looking_for_a_module_does_not_end_the_watch():
    code = """
import hf_zipit, importlib.util, sys
assert not {"torch", "timm", "transformers"} & set(sys.modules)
import timm.layers
assert importlib.util.find_spec("timm.models") is not None
import timm
"""
    assert printed(f"{code}{BUILD}") == "hf_zipit.models.cifar_resnet"


@pytest.mark.slow
def test_watched_modules_keep_their_own_loader_and_the_watch_ends():
    code = """
import hf_zipit, sys, inspect, timm
from transformers.models.auto import modeling_auto
for module in (timm.models, modeling_auto):
    assert module.__loader__ is module.__spec__.loader
    print(type(module.__loader__).__name__, len(inspect.getsource(module)) > 100)
print([finder for finder in sys.meta_path if type(finder).__module__.startswith("hf_zipit")])
"""
    assert printed(code).splitlines() == ["SourceFileLoader True", "SourceFileLoader True", "[]"]

from .assembly.parents import Merged as Merged
from .checks import check_spec as check_spec
from .errors import ZipItError as ZipItError
from .evaluation.evaluate import evaluate as evaluate
from .evaluation.evaluate import evaluate_tasks as evaluate_tasks
from .evaluation.results import Result as Result
from .merging.merge import merge as merge
from .merging.merge import merge_recipe as merge_recipe
from .merging.merger import Merger as Merger
from .models.configuration_zipit import ZipItConfig as ZipItConfig
from .models.configuration_zipit_model import ZipItModelConfig as ZipItModelConfig
from .models.modeling_zipit import ZipItForImageClassification as ZipItForImageClassification
from .models.modeling_zipit_model import ZipItModel as ZipItModel
from .recipe import Recipe as Recipe
from .recipe import read_recipe as read_recipe
from .saving.push import push as push
from .saving.save import save as save
from .sources.in_memory import module_source as module_source
from .sources.load import load_source as load_source
from .transform.match import Match as Match

__version__: str

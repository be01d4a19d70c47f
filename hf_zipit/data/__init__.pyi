from .dataset import Images as Images
from .images import open_images as open_images
from .labels import Labels as Labels
from .targets import open_targets as open_targets

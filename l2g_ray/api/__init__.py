"""What `import l2g_ray` offers, and the command line calls: requests, runs, predictors."""

import logging
import warnings

# In a notebook, libraries below ask for ipywidgets. `monitor.bars` needs none.
warnings.filterwarnings("ignore", message="IProgress not found")
logging.getLogger("ray.widgets.util").setLevel(logging.WARNING)

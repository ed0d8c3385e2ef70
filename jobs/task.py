"""One task as a Ray job: `l2g-ray run` with the options given here. BENCH/TASK of the catalogue, or files of your own.

python jobs/submit.py jobs/task.yaml -- nt/H3 --data-dir /shared/data
python jobs/submit.py jobs/task.yaml -- /shared/my_data --language-model minilm
"""

import sys

from l2g_ray.cli.main import run

if __name__ == "__main__":
    sys.argv[:1] = ["l2g-ray", "run"]
    run()

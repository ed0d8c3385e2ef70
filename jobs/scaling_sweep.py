"""Weak and strong scaling as a Ray job: `l2g-ray scale` with the options given here.

python jobs/submit.py jobs/scaling_sweep.yaml -- --workers 1,2,4,8
"""

import sys

from l2g_ray.cli.main import run

if __name__ == "__main__":
    sys.argv[:1] = ["l2g-ray", "scale"]
    run()

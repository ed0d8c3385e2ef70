"""All tasks of a benchmark as a Ray job: `l2g-ray suite` with the options given here.

    python jobs/submit.py jobs/suite.yaml -- --bench nt --data-dir /shared/data --preset paper

Submitted again, a stopped job resumes, and a finished one shows its results.
"""

import sys

from l2g_ray.cli.main import run

if __name__ == "__main__":
    # The command line, and not a function of the package: what is in suite.json can be typed in any shell.
    sys.argv[:1] = ["l2g-ray", "suite"]
    run()

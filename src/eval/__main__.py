"""`python -m tokenlabel.eval`."""

import sys

from ..core.command import run_stage

sys.exit(run_stage("eval"))

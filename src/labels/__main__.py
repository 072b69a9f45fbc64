"""`python -m tokenlabel.labels`."""

import sys

from ..core.command import run_stage

sys.exit(run_stage("labels"))

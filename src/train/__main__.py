"""`python -m tokenlabel.train`."""

import sys

from ..core.command import run_stage

sys.exit(run_stage("train"))

"""`python -m tokenlabel.data`."""

import sys

from ..core.command import run_stage

sys.exit(run_stage("data"))

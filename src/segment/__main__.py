"""`python -m tokenlabel.segment`."""

import sys

from ..core.command import run_stage

sys.exit(run_stage("segment"))

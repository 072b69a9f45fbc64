"""`python -m tokenlabel.demo`."""

import sys

from ..core.command import run_stage

sys.exit(run_stage("demo"))

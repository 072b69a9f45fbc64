"""`python -m tokenlabel.annotate`."""

import sys

from ..core.command import run_stage

sys.exit(run_stage("annotate"))

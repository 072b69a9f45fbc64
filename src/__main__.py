"""`python -m tokenlabel VERB ...`: the command line without the console script on PATH."""

import sys

from .cli import main

sys.exit(main())

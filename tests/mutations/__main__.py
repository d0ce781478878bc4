"""``python -m tests.mutations``: see ``run.py``."""

import sys

from tests.mutations.run import main

sys.exit(main())

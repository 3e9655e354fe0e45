"""`python -m dafx_actors.cli`."""

import sys

from dafx_actors.cli._main import main

sys.exit(main())

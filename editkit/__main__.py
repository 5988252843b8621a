"""`python -m editkit` is `editkit`."""

import sys

from editkit.cli import main

sys.exit(main())

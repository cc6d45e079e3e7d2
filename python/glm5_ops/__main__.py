"""``python -m glm5_ops``: the same as ``glm5-ops``."""

import sys

from glm5_ops.cli import main

sys.exit(main())

"""``python -m pyro_nri`` is the command ``pyro-nri``."""

import sys

from pyro_nri.cli import main

sys.exit(main())

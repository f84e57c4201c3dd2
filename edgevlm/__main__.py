"""`python -m edgevlm`: the command line."""

import sys

from edgevlm.cli.main import main

if __name__ == "__main__":
    sys.exit(main())

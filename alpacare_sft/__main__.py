"""`python -m alpacare_sft`."""

import sys

from alpacare_sft.cli import main

if __name__ == "__main__":
    sys.exit(main())

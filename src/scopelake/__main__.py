"""``python -m scopelake``."""

from scopelake.cli import main

raise SystemExit(main())

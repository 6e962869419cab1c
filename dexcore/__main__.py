"""``python -m dexcore`` is the command ``dexcore``."""

from dexcore.cli import main

raise SystemExit(main())

"""One rank of a run, from a configuration file: python -m ppt_kit CONFIG (the launcher's variables say which rank)."""

import sys
from pathlib import Path


def main() -> int:
    from ppt_kit.config import from_file
    from ppt_kit.errors import UserError
    from ppt_kit.train.trainer import UnifiedTrainer

    words = [word for word in sys.argv[1:] if not word.startswith("--local")]
    try:
        return UnifiedTrainer(from_file(Path(words[0])), mode="distributed").run()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())

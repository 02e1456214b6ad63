"""python -m ppt_kit CONFIG: one rank of a run (the launcher's variables say which); --supervise FOLDER: its launch."""

import sys
from pathlib import Path


def main() -> int:
    from ppt_kit.jobs.parents import SUPERVISE

    words = [word for word in sys.argv[1:] if not word.startswith("--local")]
    if words[0] == SUPERVISE:
        from ppt_kit.jobs.supervise import supervise

        return supervise(Path(words[1]))
    return _rank(Path(words[0]))


def _rank(config_file: Path) -> int:
    from ppt_kit.config import from_file
    from ppt_kit.errors import UserError
    from ppt_kit.train.trainer import UnifiedTrainer

    try:
        return UnifiedTrainer(from_file(config_file), mode="distributed").run()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())

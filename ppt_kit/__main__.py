"""python -m ppt_kit CONFIG [key=value …]: one rank of a run (the launcher's variables say which).

--supervise FOLDER is its launch, --evaluate a checkpoint that is measured while the run trains on; jobs lists launches,
doctor looks whether this machine can do it all, plan says what a run would take of memory. An installation calls it
`ppt`.
"""

import sys
from pathlib import Path

from ppt_kit import __version__
from ppt_kit.programs import to_type

USAGE = (
    "usage: python -m ppt_kit jobs [OUTPUT_DIR], python -m ppt_kit doctor, python -m ppt_kit plan [num_gpus=N] "
    "[gpu_gb=GB] [key=value …], --version, or CONFIG.yaml under a launcher; "
    f"to train type {to_type('train')} --help"
)


# doctor takes no words
LOOKS = (["doctor"], ["doctor", "--help"], ["doctor", "-h"])


def main() -> int:
    from ppt_kit.commands.cli import ends_in_a_line
    from ppt_kit.errors import UserError
    from ppt_kit.jobs.parents import SUPERVISE
    from ppt_kit.train.evaluator import EVALUATE, evaluate_request
    from ppt_kit.words import own_words

    try:
        words = own_words(sys.argv[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if words and (words[0] == "plan" or (words[0] == "jobs" and len(words) <= 2) or words in LOOKS):
        with ends_in_a_line():
            return _look(words[0], words[1:])
    if len(words) == 2 and words[0] == SUPERVISE:
        from ppt_kit.jobs.supervise import supervise

        return supervise(Path(words[1]))
    if words == [EVALUATE]:
        return evaluate_request()
    if words == ["--version"]:
        print(f"ppt_kit {__version__}")
        return 0
    if not words or words[0].startswith("-") or not all("=" in word for word in words[1:]):
        print(USAGE, file=sys.stderr)
        return 0 if words in (["-h"], ["--help"]) else 2
    return _rank(Path(words[0]), words[1:])


def _look(at: str, words: list[str]) -> int:
    """jobs, doctor and plan: what there is, what works, what it would take."""
    if {"-h", "--help"} & set(words):
        from ppt_kit.help import describe_keys

        print(f"{USAGE}\n\n{describe_keys()}" if at == "plan" else USAGE)
        return 0
    if at == "jobs":
        return _list_jobs(*words)
    return _plan(words) if at == "plan" else check_installation()


def _list_jobs(*output_dir: str) -> int:
    from ppt_kit.jobs.listing import jobs

    table = jobs(*output_dir)
    # a line a run: what does not fit is in the notebook's table, and in the run's own log
    shown = table.drop(columns="run_dir").assign(detail=table["detail"].str.slice(0, 80))
    print(shown.to_string(index=False, na_rep="") if len(table) else "nothing was launched here")
    return 0


def check_installation() -> int:
    """Prints what works here as it is found; 0 where all does, else 1."""
    from ppt_kit.installation import check_installation

    report = check_installation(tell=lambda line: print(line, flush=True))
    print(report.told())
    return 0 if report.works else 1


def _plan(words: list[str]) -> int:
    from ppt_kit.train.planning import plan_of_words

    found = plan_of_words(words)
    print(found)
    return 0 if found.fits else 1


def _rank(config_file: Path, words: list[str]) -> int:
    from ppt_kit.config import from_file
    from ppt_kit.errors import UserError
    from ppt_kit.jobs.failures import tell_once
    from ppt_kit.schema import Config
    from ppt_kit.train.trainer import UnifiedTrainer
    from ppt_kit.words import parse_words, set_word

    try:
        cfg = from_file(config_file)
        for key, text in parse_words(words):
            cfg = set_word(cfg, key, text, Config)
        return UnifiedTrainer(cfg, mode="distributed").run()
    except UserError as error:
        tell_once(error, config_file.parent)
        return 2


if __name__ == "__main__":
    sys.exit(main())

"""Whether an evaluation's episodes go here as they went there: `verify_card.py outputs/models/<domain>/<suffix>`."""

from ppt_kit.commands.verify_card import run

if __name__ == "__main__":
    run()

"""DeepSpeed's checkpoints, whoever wrote them: python scripts/ds_checkpoint.py inspect|to-weights FOLDER"""

from ppt_kit.commands.ds_checkpoint import run

if __name__ == "__main__":
    run()

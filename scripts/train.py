"""Trains a policy: python scripts/train.py [--config-name=NAME] [key=value …]; also under deepspeed and torchrun."""

from ppt_kit.commands.train import run

if __name__ == "__main__":
    run()

"""Trains every combination of lists: sweep.py [--config-name=NAME] sweep.optimizer.lr=[1e-3,3e-4] sweep.seed=[0,1,2]"""

from ppt_kit.commands.sweep import run

if __name__ == "__main__":
    run()

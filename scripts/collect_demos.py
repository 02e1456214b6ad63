"""Demonstrations by a simulator's scripted expert: `collect_demos.py task=button-press-topdown episodes=10`."""

from ppt_kit.commands.collect_demos import run

if __name__ == "__main__":
    run()

"""Checkpoints' success rates in simulation: `eval_sim.py train.pretrained_dir=outputs/models/<domain>/<suffix>`."""

from ppt_kit.commands.eval_sim import run

if __name__ == "__main__":
    run()

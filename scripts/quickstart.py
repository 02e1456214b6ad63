"""From nothing to a measured policy, what `make quickstart` runs: collect, train, evaluate, a blind control, report."""

from ppt_kit.commands.quickstart import run

if __name__ == "__main__":
    run()

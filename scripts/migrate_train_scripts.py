"""A folder of ppt_learning goes on with ppt_kit: migrate_train_scripts.py --project=DIR --backup --create-wrappers"""

from ppt_kit.commands.migrate_train_scripts import run

if __name__ == "__main__":
    run()

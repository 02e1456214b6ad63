"""What is typed in a shell: each module is one command, `python -m ppt_kit.commands.train` that of its name."""
